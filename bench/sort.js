// Sorts a table by the column whose heading is pressed; what has no number there stays last in both directions.
function key(row, head) {
  const cell = row.cells[head.cellIndex];
  if (!cell) return NaN;
  const text = cell.dataset.value ?? cell.textContent;
  return head.classList.contains("number") ? Number.parseFloat(text) : text;
}

function order(a, b) {
  if (typeof a === "string") return a.localeCompare(b, "en", { numeric: true });
  return a - b;
}

function sort(head) {
  const down = head.getAttribute("aria-sort") === "ascending";
  for (const other of head.parentNode.cells) other.setAttribute("aria-sort", "none");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const body = head.closest("table").tBodies[0];
  const rows = Array.from(body.rows, (row) => ({ row, key: key(row, head) }));
  const known = rows.filter((r) => !Number.isNaN(r.key));
  known.sort((a, b) => (down ? order(b.key, a.key) : order(a.key, b.key)));
  body.append(...[...known, ...rows.filter((r) => Number.isNaN(r.key))].map((r) => r.row));
}

for (const button of document.querySelectorAll("thead button")) {
  button.addEventListener("click", () => sort(button.closest("th")));
}
