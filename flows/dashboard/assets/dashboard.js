"use strict";

// A neighbour's button goes when another node is told of: who pressed it goes on reading there, not at the top.
document.addEventListener("click", ({ target }) => {
  if (!target.closest("#details button.node")) return;
  const details = document.getElementById("details");
  const told = new MutationObserver(() => {
    told.disconnect();
    details.focus();
  });
  told.observe(details, { childList: true });
});
