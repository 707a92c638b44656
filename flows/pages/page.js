"use strict";

// Widths of the text of an A4 page, upright and across, in CSS pixels: less than 186 mm and 273 mm.
const UPRIGHT = 700, ACROSS = 1028;
const plots = [...document.querySelectorAll(".plot")];
// Buttons are listed, and no server named: by itself plotly would offer to upload every plot to its maker.
const config = {
  responsive: true, displaylogo: false, showSendToCloud: false, plotlyServerURL: "",
  displayModeBar: matchMedia("(hover: hover)").matches && "hover", // where it would always stay it hides the legend
  modeBarButtons: [["toImage"], ["zoom2d", "pan2d", "resetScale2d"]],
};

Promise.all(plots.map((plot) => {
  const { data, layout } = JSON.parse(document.getElementById(`${plot.id}-data`).textContent);
  return Plotly.newPlot(plot, data, layout, config);
})).then((drawn) => { document.body.dataset.drawn = drawn.length; });

window.addEventListener("beforeprint", () => {
  document.body.classList.add("printing");
  for (const plot of plots) Plotly.relayout(plot, { width: UPRIGHT });
  for (const table of document.querySelectorAll("table")) {
    const room = table.closest(".across") ? ACROSS : UPRIGHT;
    table.parentElement.style.width = `${room}px`;
    table.style.zoom = Math.min(1, room / table.scrollWidth);
  }
});
window.addEventListener("afterprint", () => {
  document.body.classList.remove("printing");
  for (const plot of plots) Plotly.relayout(plot, { width: null, autosize: true });
  for (const table of document.querySelectorAll("table")) table.style.zoom = table.parentElement.style.width = "";
});

function key(row, column) {
  const { sort } = row.cells[column].dataset;
  return sort === undefined ? null : sort;
}

function order(one, other, numeric) {
  return numeric ? Number(one) - Number(other) : one.localeCompare(other, "en", { numeric: true });
}

function sort(header) {
  const table = header.closest("table"), body = table.tBodies[0], column = header.cellIndex;
  const sign = header.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
  const numeric = header.classList.contains("number");
  const rows = [...body.rows].sort((first, second) => {
    const one = key(first, column), other = key(second, column);
    if (one === null || other === null) return (one === null) - (other === null); // empty cells stay last
    return sign * order(one, other, numeric);
  });
  body.append(...rows);
}

function csv(table) {
  const quoted = (field) => (/[",\r\n]/.test(field) ? `"${field.replaceAll('"', '""')}"` : field);
  const line = (row) => [...row.cells].flatMap((cell) => JSON.parse(cell.dataset.csv)).map(quoted).join(",");
  return [...table.rows].map(line).join("\r\n") + "\r\n";
}

function save(text, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/csv;charset=utf-8" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

for (const table of document.querySelectorAll("table.sortable")) {
  for (const button of table.querySelectorAll("th button")) {
    button.addEventListener("click", () => sort(button.closest("th")));
  }
}
for (const button of document.querySelectorAll(".csv")) {
  button.addEventListener("click", () => save(csv(document.getElementById(button.dataset.table)), button.dataset.file));
}
