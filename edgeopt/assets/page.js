"use strict";
// A box that scrolls must be reachable by keyboard; one that does not must not be a stop.
function markScrollers() {
  document.querySelectorAll(".scroll").forEach((box) => {
    if (box.scrollWidth > box.clientWidth + 1 || box.scrollHeight > box.clientHeight + 1) {
      box.tabIndex = 0;
    } else {
      box.removeAttribute("tabindex");
    }
  });
}
markScrollers();
window.addEventListener("resize", markScrollers);
document.addEventListener("toggle", markScrollers, true);

const allCode = document.getElementById("all-code");
if (allCode) {
  allCode.hidden = false;
  allCode.addEventListener("click", () => {
    const open = allCode.getAttribute("aria-pressed") !== "true";
    allCode.setAttribute("aria-pressed", String(open));
    allCode.textContent = open ? "Hide all code" : "Show all code";
    document.querySelectorAll("details.code").forEach((block) => { block.open = open; });
  });
}
