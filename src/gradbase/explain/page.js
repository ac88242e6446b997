// Reads out what is live at the pointer, or at the cursor moved with the arrow keys.
const data = JSON.parse(document.getElementById("memory-data").textContent);
const chart = document.getElementById("memory-chart");
const cursor = chart.querySelector(".cursor");
const readout = document.getElementById("memory-readout");
let at = 0;

function show(index) {
  at = Math.max(0, Math.min(data.columns.length - 1, index));
  const column = data.columns[at];
  cursor.setAttribute("x1", column.x);
  cursor.setAttribute("x2", column.x);
  cursor.style.visibility = "visible";
  readout.textContent = column.text;
}

chart.addEventListener("pointermove", (event) => {
  const box = chart.getBoundingClientRect();
  const x = (event.clientX - box.left) * (data.width / box.width);
  let low = 0, high = data.columns.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (data.columns[middle].x <= x) low = middle; else high = middle - 1;
  }
  show(low);
});
chart.addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (step) { show(at + step); event.preventDefault(); }
});
