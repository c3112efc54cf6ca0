// Tables of leaderboard.html: a click on a head sorts by that column, another one the other way.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") !== "descending";
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = row => row.cells[column].dataset.value;
    const order = (a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === "" || y === "") return (x === "") - (y === "");  // what has no value stays last
      const difference = isNaN(x) || isNaN(y) ? -x.localeCompare(y) : x - y;
      return down ? -difference : difference;
    };
    table.tBodies[0].append(...[...table.tBodies[0].rows].sort(order));
  }));
}
