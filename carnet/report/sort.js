// Sort the rows by a clicked column; a second click reverses the order. Empty cells stay last.
const number = text => parseFloat(text.replaceAll(",", ""));
for (const head of document.querySelectorAll("th")) {
  const button = document.createElement("button");
  button.append(...head.childNodes);
  head.append(button);
  button.onclick = () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const body = head.closest("table").tBodies[0];
    const value = row => row.cells[head.cellIndex].textContent.trim();
    const compare = (a, b) => {
      const x = value(a), y = value(b);
      if (!x || !y) return !x - !y;
      const order = head.cellIndex ? number(x) - number(y) : x.localeCompare(y);
      return down ? -order : order;
    };
    body.append(...[...body.rows].sort(compare));
  };
}
