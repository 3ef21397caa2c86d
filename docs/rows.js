// The table and plot of results/rows.md: reads one of its CSV files, sorts by a click, plots one figure against another.
const home = document.getElementById("rows");
if (home) {
  const files = home.dataset.files.split(" ");
  const make = (tag, parent, text = "") => {
    const element = document.createElement(tag);
    element.textContent = text;
    parent.append(element);
    return element;
  };
  const controls = make("p", home);
  const choose = (label, values, chosen) => {
    const holder = make("label", controls, `${label} `), select = make("select", holder);
    for (const value of values) make("option", select, value).value = value;
    select.value = chosen;
    controls.append(" ");
    return select;
  };
  const parse = (text) => {
    const plain = (cell) => (cell.startsWith('"') ? cell.slice(1, -1).replaceAll('""', '"') : cell);
    const cells = (line) => [...line.matchAll(/("(?:[^"]|"")*"|[^,]*)(,|$)/g)].map(([, cell]) => plain(cell));
    const lines = text.trim().split("\n").map(cells);
    const names = lines[0].slice(0, -1);  // at a line's end the pattern matches nothing once more
    return { names, rows: lines.slice(1).map((cells) => cells.slice(0, names.length)) };
  };
  const numeric = (rows, column) => rows.some((row) => row[column] !== "" && !isNaN(row[column]));
  const colour = (index, count) => `hsl(${Math.round((360 * index) / count)} 65% 50%)`;

  const plot = (holder, { names, rows }, x, y, group) => {
    holder.replaceChildren();
    const [i, j, k] = [x, y, group].map((name) => names.indexOf(name));
    const points = rows.filter((row) => row[i] !== "" && row[j] !== "");
    if (!points.length) return make("p", holder, "No row has all of these words.");
    const ns = "http://www.w3.org/2000/svg", [width, height, left, bottom] = [640, 360, 60, 40];
    const svg = document.createElementNS(ns, "svg");
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", `${y} against ${x}`);
    const add = (name, attributes, text = "") => {
      const element = document.createElementNS(ns, name);
      for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
      element.textContent = text;
      svg.append(element);
      return element;
    };
    const scale = (column, from, to) => {
      const values = points.map((row) => parseFloat(row[column]));
      const [low, high] = [Math.min(...values), Math.max(...values)];
      const log = low > 0 && high > 20 * low, f = log ? Math.log : (value) => value;
      const place = (value) => from + ((f(value) - f(low)) / (f(high) - f(low) || 1)) * (to - from);
      return { place, low, high };
    };
    const across = scale(i, left, width - 20), up = scale(j, height - bottom, 15);
    const text = { fill: "currentColor", "font-size": 12 };
    for (const [scaled, horizontal] of [[across, true], [up, false]])
      for (const value of [scaled.low, scaled.high]) {
        const at = scaled.place(value), label = Number(value.toPrecision(3));
        add("text", horizontal ? { ...text, x: at, y: height - bottom + 18, "text-anchor": "middle" }
                               : { ...text, x: left - 6, y: at + 4, "text-anchor": "end" }, label);
      }
    add("text", { ...text, x: (left + width) / 2, y: height - 6, "text-anchor": "middle" }, x);
    add("text", { ...text, x: 12, y: 10 }, y);
    const groups = [...new Set(points.map((row) => row[k]))];
    for (const row of points) {
      const dot = add("circle", { cx: across.place(row[i]), cy: up.place(row[j]), r: 4, "fill-opacity": 0.75,
        fill: colour(groups.indexOf(row[k]), groups.length) });
      const title = document.createElementNS(ns, "title");
      title.textContent = names.map((name, column) => `${name} ${row[column]}`).join("\n");
      dot.append(title);
    }
    holder.append(svg);
    const legend = make("p", holder);
    groups.forEach((name, index) => {
      make("span", legend, "● ").style.color = colour(index, groups.length);
      make("span", legend, `${name} `);
    });
  };

  const table = (holder, { names, rows }) => {
    holder.replaceChildren();
    const element = make("table", holder), head = make("tr", make("thead", element)), body = make("tbody", element);
    let sorted = [-1, 1];
    const fill = (list) => {
      body.replaceChildren();
      for (const row of list) {
        const line = make("tr", body);
        for (const cell of row) make("td", line, cell);
      }
    };
    names.forEach((name, column) => {
      const button = make("button", make("th", head), name);
      button.onclick = () => {
        sorted = [column, sorted[0] === column ? -sorted[1] : 1];
        const number = numeric(rows, column);
        const value = (row) => (number ? (row[column] === "" ? Infinity : parseFloat(row[column])) : row[column]);
        const order = (a, b) => (value(a) < value(b) ? -1 : value(a) > value(b) ? 1 : 0) * sorted[1];
        fill([...rows].sort(order));
      };
    });
    fill(rows);
  };

  const show = async (file) => {
    const data = parse(await (await fetch(new URL(`../${file}`, location.href))).text());
    const figures = data.names.filter((_, column) => numeric(data.rows, column));
    const words = data.names.filter((name) => !figures.includes(name));
    controls.replaceChildren();
    const pick = choose("File", files, file);
    const x = choose("across", figures, figures.includes("latents_per_s") ? "latents_per_s" : "recall");
    const y = choose("up", figures, "fd");
    const group = choose("colour", [...words, ...figures], ["label", "latents"].find((name) => words.includes(name)));
    const holding = make("label", controls, "only "), only = make("input", holding);
    only.placeholder = "words that a row must have";
    only.value = (JSON.parse(home.dataset.only || "{}"))[file] || "";
    controls.append(" ");
    const link = make("a", controls, "download");
    link.href = `../${file}`;
    const [picture, holder] = [home.querySelector(".plot"), home.querySelector(".csv")];
    const draw = () => {
      const words = only.value.split(" ").filter(Boolean);
      const rows = data.rows.filter((row) => words.every((word) => row.some((cell) => cell.includes(word))));
      plot(picture, { ...data, rows }, x.value, y.value, group.value);
      table(holder, { ...data, rows });
    };
    for (const select of [x, y, group, only]) select.onchange = draw;
    pick.onchange = () => show(pick.value);
    draw();
  };
  make("div", home).className = "plot";
  const scroll = make("div", home);
  scroll.className = "csv";
  scroll.style.cssText = "overflow: auto; max-height: 70vh";
  show(files[0]);
}
