// htmx under the content security policy: it adds no inline styles and evaluates no strings.
htmx.config.includeIndicatorStyles = false;
htmx.config.allowEval = false;

// These answers carry a fragment to show, too: 422, a form with mistakes; 503, a service that is away.
htmx.config.responseHandling = [
  { code: "204", swap: false },
  { code: "[23]..", swap: true },
  { code: "422|503", swap: true },
  { code: "[45]..", swap: false, error: true },
];

// htmx is silent about requests that fail. The page says so, until the next one succeeds.
function showNotice(text) {
  const notice = document.getElementById("notice");
  notice.hidden = !text;
  notice.textContent = text;
}

document.addEventListener("htmx:sendError", () => showNotice("The server cannot be reached."));
document.addEventListener("htmx:responseError", () => showNotice("The server could not do this. Load the page again."));
document.addEventListener("htmx:afterOnLoad", (event) => event.detail.successful && showNotice(""));
