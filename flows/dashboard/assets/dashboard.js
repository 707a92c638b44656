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
let newest, size;
const centre = (cy) => {
  cy.resize();
  cy.fit(undefined, 20);
};
// Another size of the frame is fitted anew; after it was hidden it is as the reader left it. (dash-cytoscape's
// `responsive` divides by the width it had when hidden, which is 0: nothing is seen any more.)
const sizes = new ResizeObserver(([{ target, contentRect: { width, height } }]) => {
  if (!width || size === `${width} ${height}`) return;
  size = `${width} ${height}`;
  centre(target._cyreg.cy);
});
window.dash_clientside = Object.assign({}, window.dash_clientside, {
  moeprune: {
    fit(elements) {
      const drawn = JSON.stringify(elements.map(({ data }) => data.id));
      if (drawn === newest) return;
      newest = drawn;
      const whole = () => {
        if (drawn !== newest) return;
        const frame = [...document.querySelectorAll("#graph, #graph *")].find((element) => element._cyreg);
        const cy = frame?._cyreg.cy;
        if (cy?.elements().length !== elements.length || !frame.clientWidth) return setTimeout(whole, 50);
        centre(cy);
        sizes.observe(frame);
      };
      if (elements.length) requestAnimationFrame(whole);
    },
  },
});
