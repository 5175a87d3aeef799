// A reply that is still written: the server streams its text as it grows, and in the end the whole message.
function follow(reply) {
  const source = new EventSource(reply.dataset.stream);
  source.addEventListener("text", (event) => {
    reply.querySelector(".message-text").innerHTML = event.data;
    keepEndInSight();
  });
  source.addEventListener("end", (event) => {
    source.close();
    htmx.swap(reply, event.data, { swapStyle: "outerHTML" });
  });
  // A stream that breaks is opened again by the browser, but not one that was refused, as by a proxy in a deployment.
  source.addEventListener("error", () => {
    if (source.readyState === EventSource.CLOSED) setTimeout(() => reply.isConnected && follow(reply), 3000);
  });
  // The reply was stopped: another message has taken its place.
  reply.addEventListener("htmx:beforeCleanupElement", () => source.close());
}

htmx.onLoad((content) => {
  const replies = [...content.querySelectorAll("[data-stream]")];
  if (content.matches("[data-stream]")) replies.push(content);
  replies.forEach(follow);
});
