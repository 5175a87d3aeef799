function showEnd() {
  window.scrollTo(0, document.documentElement.scrollHeight);
}

function sendButton(form) {
  return form.querySelector("[type=submit]");
}

// Scroll with the text, but only for those who read its end.
function keepEndInSight() {
  const below = document.documentElement.scrollHeight - window.scrollY - window.innerHeight;
  if (below < 250) showEnd();
}

htmx.onLoad((content) => {
  if (!document.getElementById("messages")) return;
  // A new question comes with its reply; what was said earlier has more below it.
  content === document.body || content.matches(".question:nth-last-child(2)") ? showEnd() : keepEndInSight();
});

// Enter sends, Shift+Enter begins a new line; while a word is composed, Enter belongs to the keyboard.
document.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || !event.target.dataset.sendWithEnter) return;
  event.preventDefault();
  if (!sendButton(event.target.form).disabled) event.target.form.requestSubmit();
});

// What is on its way is not sent twice. A form of htmx sees to that itself.
document.addEventListener("submit", (event) => {
  if (event.target.matches(".ask:not([hx-post])")) sendButton(event.target).disabled = true;
});

// Who comes back to the page may send again.
window.addEventListener("pageshow", () => {
  document.querySelectorAll(".ask").forEach((form) => (sendButton(form).disabled = false));
});

// A question was taken: be ready for the next.
document.addEventListener("htmx:oobAfterSwap", () => {
  document.querySelector("#ask textarea")?.focus({ preventScroll: true });
});
