"""A project names nothing that Windows lacks, unless it asks first whether it is there."""

import ast
import re
import signal
from collections.abc import Iterator

import pytest

from tests import template

WINDOWS_SIGNALS = {"SIGABRT", "SIGBREAK", "SIGFPE", "SIGILL", "SIGINT", "SIGSEGV", "SIGTERM", "SIG_DFL", "SIG_IGN"}
# What these modules have elsewhere alone.
MISSING = {
    "asyncio": "add_child_handler get_child_watcher",
    "os": "chown chroot confstr ctermid fchdir fchown fork forkpty getegid geteuid getgid getgroups getloadavg getpgid"
    " getpgrp getpriority getresuid getsid getuid initgroups killpg lchown lockf mkfifo mknod nice openpty pathconf"
    " pipe2 posix_fallocate posix_spawn posix_spawnp pread pwrite register_at_fork sched_getaffinity sched_setaffinity"
    " sched_yield sendfile setegid seteuid setgid setgroups setpgid setpriority setsid setuid statvfs sync sysconf"
    " tcgetpgrp ttyname uname wait wait3 wait4 waitid O_CLOEXEC O_DIRECTORY O_NOFOLLOW O_NONBLOCK O_SYNC P_ALL WEXITED"
    " WIFEXITED WIFSIGNALED WNOHANG",
    "select": "devpoll epoll kqueue poll",
    "signal": "alarm getitimer pause pthread_kill pthread_sigmask setitimer siginterrupt sigpending sigwait",
    "socket": "AF_UNIX SO_REUSEPORT recvmsg sendmsg",
    "time": "clock_gettime clock_settime tzset",
}
MISSING_MODULES = {"crypt", "curses", "fcntl", "grp", "pty", "pwd", "readline", "resource", "syslog", "termios", "tty"}
NAMES = {f"{module}.{name}" for module, names in MISSING.items() for name in names.split()} | {
    f"signal.{name}" for name in dir(signal) if re.match("SIG[A-Z]", name) and name not in WINDOWS_SIGNALS
}
# Those of an event loop, and options of a new process.
METHODS = {"add_signal_handler", "remove_signal_handler"}
OPTIONS = {"pass_fds", "preexec_fn", "process_group", "start_new_session"}
# Paths, formats of a date without a zero in front, and code that is run by another Python.
TEXT = re.compile(r"^/(dev|etc|proc|run|tmp|usr|var)(/|$)|%-[dHIjmMSUwWy]|" + "|".join(map(re.escape, sorted(NAMES))))
# Whoever asks one of these knows where the code runs; and where there is no TEMP, it is not Windows.
QUESTION = re.compile(r"\bhasattr\(|\bos\.name\b|\bsys\.platform\b|\bplatform\.system\(|'TEMP'")


class Source:
    """A Python file, and what it asks before it names something."""

    def __init__(self, text: str) -> None:
        self.tree = ast.parse(text)
        self.parents = {child: node for node in ast.walk(self.tree) for child in ast.iter_child_nodes(node)}
        # Names that are empty on Windows: a module that could not be imported, or what is made elsewhere alone.
        self.empty_on_windows: set[str] = set()
        self.empty_on_windows = {*self.tried_imports(), *self.made_elsewhere()}

    def tried_imports(self) -> Iterator[str]:
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import) and self.is_guarded(node):
                yield from (alias.asname or alias.name for alias in node.names)

    def made_elsewhere(self) -> Iterator[str]:
        values: dict[str, list[ast.expr]] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value:
                for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                    values.setdefault(ast.unparse(target), []).append(node.value)
        for name, found in values.items():
            made = [value for value in found if not (isinstance(value, ast.Constant) and value.value is None)]
            if len(made) < len(found) and all(map(self.is_guarded, made)):
                yield name

    def asks(self, node: ast.AST) -> bool:
        text = ast.unparse(node)
        return bool(QUESTION.search(text)) or any(
            re.search(rf"(?<![\w.]){re.escape(name)}\b", text) for name in self.empty_on_windows
        )

    def is_guarded(self, node: ast.AST) -> bool:
        """Whether the node is reached on Windows only if what it names is there."""
        while parent := self.parents.get(node):
            match parent:
                case ast.If(test=test) | ast.IfExp(test=test) if node is not test and self.asks(test):
                    return True
                case ast.BoolOp(values=[*values]) if any(map(self.asks, values[: values.index(node)])):
                    return True
                case ast.Try(body=body, handlers=handlers) if node in body:
                    caught = " ".join(ast.unparse(each.type) for each in handlers if each.type)
                    if re.search("ImportError|AttributeError", caught):
                        return True
                case ast.FunctionDef(decorator_list=decorators) if any(map(self.asks, decorators)):
                    return True
                case ast.Module(body=body) if any(
                    ast.unparse(each).startswith("pytestmark") and self.asks(each) for each in body
                ):
                    return True
                case ast.Assign(targets=[ast.Name(id=name)]) if isinstance(self.parents[parent], ast.Module):
                    return all(map(self.is_guarded, self.uses(name)))
            node = parent
        return False

    def uses(self, name: str) -> list[ast.AST]:
        found = [each for each in ast.walk(self.tree) if isinstance(each, ast.Name) and each.id == name]
        return [each for each in found if isinstance(each.ctx, ast.Load)] or [self.tree]

    def missing(self) -> list[str]:
        """What the file names without asking, each with its line."""
        found = [(node, name) for node in ast.walk(self.tree) for name in named(node)]
        return [
            f"{node.lineno}: {name}"
            for node, name in found
            if not self.is_guarded(node) and not self.is_docstring(node)
        ]

    def is_docstring(self, node: ast.AST) -> bool:
        return isinstance(self.parents.get(node), ast.Expr)


def named(node: ast.AST) -> Iterator[str]:
    """What a node names that Windows lacks."""
    match node:
        case ast.Import(names=names):
            yield from (alias.name for alias in names if alias.name in MISSING_MODULES)
        case ast.ImportFrom(module=module, names=names):
            full = [f"{module}.{alias.name}" for alias in names]
            yield from full if module in MISSING_MODULES else (name for name in full if name in NAMES)
        case ast.Attribute(value=ast.Name(id=module), attr=name) if (
            module in MISSING_MODULES or f"{module}.{name}" in NAMES
        ):
            yield f"{module}.{name}"
        case ast.Attribute(attr=name) if name in METHODS:
            yield name
        case ast.keyword(arg=name) if name in OPTIONS:
            yield f"{name}="
        case ast.Constant(value=str(text)) if text in OPTIONS or TEXT.search(text):
            yield repr(text)


@pytest.fixture(scope="module")
def sources(renderer: template.Renderer) -> dict[str, list[str]]:
    """Every Python file of a project with every feature, of one with none, and of one in between."""
    found: dict[str, list[str]] = {}
    for answers in ({}, template.OFF, template.EVERYTHING, template.EVERYTHING | {"use_async": False}):
        for path, content in renderer.project(template.DEFAULTS | answers).items():
            if path.endswith(".py") and content.decode() not in found.setdefault(path, []):
                found[path].append(content.decode())
    return found


def test_nothing_is_named_that_windows_lacks(sources):
    missing = {path: lines for path, texts in sources.items() for text in texts if (lines := Source(text).missing())}
    assert not missing


@pytest.mark.parametrize(
    "text",
    [
        "import os, signal\nos.kill(1, signal.SIGKILL)",
        "from signal import SIGSTOP",
        "import resource",
        "try:\n    import fcntl\nexcept ImportError:\n    fcntl = None\nfcntl.flock(1, 2)",
        "import os\nif os.name == 'posix':\n    pass\nos.getuid()",
        "subprocess.run(['true'], process_group=0)",
        "loop.add_signal_handler(15, print)",
        "open('/dev/null')",
        "now.strftime('%-d. %B')",
        "import os\nCODE = 'import os; os.fork()'\nrun(CODE)",
        "class A:\n    def f(self):\n        self.g = 1\n        if self.g:\n            os.killpg(1, 9)",
    ],
)
def test_what_is_named_without_a_question_is_found(text):
    assert Source(text).missing()


@pytest.mark.parametrize(
    "text",
    [
        "import os, signal\nos.kill(1, getattr(signal, 'SIGKILL', signal.SIGTERM))",
        "import signal\nif hasattr(signal, 'SIGHUP'):\n    signal.signal(signal.SIGHUP, print)",
        "try:\n    import fcntl\nexcept ImportError:\n    fcntl = None\nif fcntl:\n    fcntl.flock(1, 2)",
        "import os\nuser = 'x' if os.name == 'nt' else os.getuid()",
        "'''In /tmp.'''",
    ],
)
def test_what_is_asked_for_first_is_not(text):
    assert not Source(text).missing()
