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

// cytoscape fits the graph to its frame once, which can be before all of either is there or shown. A graph of which only
// the marks have changed is left as the reader has zoomed it.
let newest;
window.dash_clientside = Object.assign({}, window.dash_clientside, {
  moeprune: {
    fit(elements, style) {
      const drawn = JSON.stringify([elements.map(({ data }) => data.id), style]);
      if (drawn === newest) return;
      newest = drawn;
      const whole = () => {
        if (drawn !== newest) return;
        const frame = [...document.querySelectorAll("#graph, #graph *")].find((element) => element._cyreg);
        const cy = frame?._cyreg.cy;
        if (cy?.elements().length !== elements.length || !frame.clientWidth) return setTimeout(whole, 50);
        cy.resize();
        cy.fit(undefined, 20);
      };
      if (elements.length) requestAnimationFrame(whole);
    },
  },
});
