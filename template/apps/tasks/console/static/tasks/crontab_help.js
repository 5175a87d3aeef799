// On the admin page of a periodic task: says in words, under the choice of a crontab, when it is due.
const crontabs = JSON.parse(document.getElementById("readable-crontabs").textContent);
const choice = document.getElementById("id_crontab");
const row = document.querySelector(".field-crontab");

// Without the right to change the task there is no choice, only text.
if (choice && row) {
  const words = document.createElement("div");
  words.className = "help";
  words.setAttribute("aria-live", "polite");
  row.append(words);

  const translate = () => {
    words.textContent = crontabs[choice.value] ?? "";
  };
  choice.addEventListener("change", translate);
  translate();

  // The translation of the saved crontab stands in a row of its own, which knows nothing of a new choice.
  document.querySelector(".field-crontab_translation")?.setAttribute("hidden", "");
}
