import django.db.models.deletion
import django.utils.timezone
import uuid
from django.conf import settings
from django.db import migrations, models


class Migration(migrations.Migration):

    initial = True

    dependencies = [
        ('users', '0001_initial'),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.CreateModel(
            name='Allowance',
            fields=[
                ('owner', models.OneToOneField(on_delete=django.db.models.deletion.CASCADE, primary_key=True, serialize=False, to=settings.AUTH_USER_MODEL)),
                ('hour_began_at', models.DateTimeField(default=django.utils.timezone.now)),
                ('replies', models.PositiveIntegerField(default=0)),
            ],
        ),
        migrations.CreateModel(
            name='Chat',
            fields=[
                ('id', models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                ('name', models.CharField(blank=True, help_text='Empty until a task has found one.', max_length=80)),
                ('asked_at', models.DateTimeField(default=django.utils.timezone.now, help_text='When the last question was asked.')),
                ('owner', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='chats', to=settings.AUTH_USER_MODEL)),
            ],
            options={
                'ordering': ['-asked_at'],
            },
        ),
        migrations.CreateModel(
            name='Message',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('role', models.CharField(choices=[('question', 'Question'), ('reply', 'Reply')], max_length=10)),
                ('state', models.CharField(choices=[('waiting', 'Waiting'), ('writing', 'Writing'), ('done', 'Done'), ('stopped', 'Stopped'), ('failed', 'Failed')], default='done', max_length=10)),
                ('text', models.TextField(blank=True)),
                ('error', models.CharField(blank=True, help_text='What hindered the reply, in a sentence.', max_length=200)),
                ('detail', models.TextField(blank=True, help_text="What the model's provider said about it, for staff.")),
                ('writer', models.UUIDField(help_text='The process that has claimed the reply.', null=True)),
                ('updated_at', models.DateTimeField(default=django.utils.timezone.now)),
                ('chat', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='messages', to='chat.chat')),
            ],
            options={
                'ordering': ['pk'],
            },
        ),
        migrations.AddIndex(
            model_name='chat',
            index=models.Index(fields=['owner', '-asked_at'], name='chat_of_owner'),
        ),
        migrations.AddConstraint(
            model_name='message',
            constraint=models.UniqueConstraint(condition=models.Q(('state__in', ['waiting', 'writing'])), fields=('chat',), name='chat_writes_one_reply'),
        ),
    ]
