function showEnd() {
  window.scrollTo(0, document.documentElement.scrollHeight);
}

// Scroll with the text, but only for those who read its end.
function keepEndInSight() {
  const below = document.documentElement.scrollHeight - window.scrollY - window.innerHeight;
  if (below < 250) showEnd();
}

htmx.onLoad((content) => {
  if (!document.getElementById("messages")) return;
  content === document.body || content.matches(".question") ? showEnd() : keepEndInSight();
});

// Enter sends, Shift+Enter begins a new line; while a word is composed, Enter belongs to the keyboard.
document.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || !event.target.dataset.sendWithEnter) return;
  event.preventDefault();
  event.target.form.requestSubmit();
});

// A question was taken: be ready for the next.
document.addEventListener("htmx:oobAfterSwap", () => {
  document.querySelector("#ask textarea")?.focus({ preventScroll: true });
});
