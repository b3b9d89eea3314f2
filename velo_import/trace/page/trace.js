// SPDX-License-Identifier: Apache-2.0
// The page of `velo trace`: a waterfall and a table over the same imports. Everything that comes from the traced
// program reaches the page as text, never as markup.
"use strict";
{
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (name) => document.getElementById(name);
const PHASES = ["wait", "find", "read", "unmarshal", "compile", "dlopen", "exec"];
const COLOURS = {
  wait: "#9aa4ae", find: "#e0a100", read: "#3b8ee0", unmarshal: "#12a59a", compile: "#d6567a", dlopen: "#8a63d2", exec: "#6fae3a", other: "#b9c2cb",
  velo: "#3aa655", python: "#e08a1e", builtin: "#8b98a5", frozen: "#6f7f8f", "another loader": "#8a63d2", nobody: "#d64545", waited: "#9aa4ae", open: "#c9a227",
};
const SERVED = ["velo", "python", "builtin", "frozen", "another loader", "nobody", "waited", "open"];
const MEANING = {
  wait: "another thread was loading it", find: "who has it, and where", read: "module made, source checked, bytecode read", unmarshal: "bytecode to code",
  compile: "source to code", dlopen: "native library loaded", exec: "the module's own code", other: "importlib itself",
  nobody: "not found", waited: "another thread loaded it", open: "never ended",
};
const ROW = 19, FEW = 400;
const make = (tag, text, className) => {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (className) element.className = className;
  return element;
};
const ms = (time) => (time / 1e6 >= 100 ? (time / 1e6).toFixed(0) : (time / 1e6).toFixed(time < 1e6 ? 3 : 2));
const total = (list, value) => list.reduce((sum, each) => sum + value(each), 0);

// -- what was traced ------------------------------------------------------------------------------------------------

function unpack(process, trace) {
  const imports = process.imports.map((row) => {
    const each = { inner: [], isOpen: false };
    data.fields.forEach((name, at) => { each[name] = data.texts.includes(name) ? data.strings[row[at]] : row[at]; });
    if (each.served === "other") each.served = "another loader";
    return each;
  });
  const known = new Map(imports.map((each) => [each.number, each]));
  const roots = [];
  for (const each of imports) {
    each.outer = known.get(each.parent) || null;
    (each.outer ? each.outer.inner : roots).push(each);
    each.depth = each.outer ? each.outer.depth + 1 : 0;
    each.text = `${each.name} ${each.origin} ${each.reason} ${each.error}`.toLowerCase();
    each.other = Math.max(0, each.self_time - total(PHASES, (phase) => each[phase]));
  }
  const threads = [...new Set(imports.map((each) => each.thread))];
  // One band for each thread: they import at the same time.
  let band = 0;
  for (const thread of threads) {
    const own = imports.filter((each) => each.thread === thread);
    for (const each of own) each.row = band + each.depth;
    band = own.reduce((most, each) => Math.max(most, each.row), band) + 1;
  }
  const end = Math.max(process.ended, ...imports.map((each) => each.start + each.total), process.began + 1);
  const words = process.argv.join(" ");
  const mode = { plain: "without Velo", twin: "Velo's Python finder" }[process.mode] || "Velo";
  return { ...process, trace, imports, roots, rows: band, end, known,
    label: `${process.pid} ${process.forked ? "(forked) " : ""}${words.length > 70 ? words.slice(0, 70) + "…" : words}`, mode };
}

const processes = data.traces.map((trace) => trace.processes.map((process) => unpack(process, trace)));
let shown = processes[0][data.chosen], compared = processes[1] ? processes[1][data.compared] : null;
let view = null, sort = { key: "total", up: false }, isTree = true, words = "", chosen = null, limit = FEW;

function describe() {
  const trace = shown.trace, took = trace.ended - trace.began;
  byId("command").textContent = trace.command.join(" ");
  document.title = `Import trace: ${trace.command.join(" ")}`;
  const importing = total(shown.imports, (each) => each.self_time);
  const parts = [`CPython ${shown.version}, ${shown.mode}`, `${shown.imports.length} imports took ${ms(importing)} ms`,
    `the command ${ms(took)} ms`, `ended with ${trace.exit_code}`, `${shown.before.length} modules were loaded before tracing began`];
  if (shown.damaged) parts.push(`${shown.damaged} damaged lines left out`);
  if (compared) parts.push(`compared: ${ms(total(compared.imports, (each) => each.self_time))} ms of imports ${compared.mode === shown.mode ? "" : compared.mode}`);
  byId("summary").textContent = parts.join(" · ");
}

// -- waterfall ------------------------------------------------------------------------------------------------------

const isMatch = (each) => !words || each.text.includes(words);
const charts = [[byId("chart"), () => shown], [byId("chart-other"), () => compared]];

function span() { // of the longer one: two charts have one scale
  return Math.max(...[shown, compared].filter(Boolean).map((process) => process.end - process.began));
}

function draw() {
  const [from, to] = view || [0, span()];
  byId("range").textContent = `${ms(from)} ms to ${ms(to)} ms`;
  const style = getComputedStyle(document.documentElement);
  for (const [canvas, process] of charts) {
    if (!process()) continue;
    const width = canvas.parentElement.clientWidth - 2, height = (process().rows + 1) * ROW + 4, ratio = window.devicePixelRatio || 1;
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    canvas.style.height = `${height}px`;
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    const place = (time) => (time - from) / (to - from) * width;
    pen.font = "12px ui-monospace, monospace";
    pen.textBaseline = "middle";
    const step = 10 ** Math.floor(Math.log10((to - from) / 4)), ticks = (to - from) / step > 20 ? step * 5 : (to - from) / step > 8 ? step * 2 : step;
    const ink = style.getPropertyValue("color") || "#888";
    for (let at = Math.ceil(from / ticks) * ticks; at < to; at += ticks) {
      pen.fillStyle = "#8885";
      pen.fillRect(place(at), 0, 1, height);
      pen.fillStyle = "#888";
      pen.fillText(`${+(at / 1e6).toFixed(3)} ms`, place(at) + 4, ROW / 2);
    }
    for (const each of process().imports) {
      const start = each.start - process().began, x = place(start), end = place(start + each.total);
      if (end < 0 || x > width) continue;
      const y = (each.row + 1) * ROW;
      pen.globalAlpha = isMatch(each) ? 1 : 0.15;
      const wide = Math.max(end - x, 0.6);
      if (byId("colour").value === "served" || wide < 3) {
        pen.fillStyle = byId("colour").value === "served" ? COLOURS[each.served] || "#888" : COLOURS.exec;
        pen.fillRect(x, y, wide, ROW - 2);
      } else {
        let at = x; // The phases before the module runs come one after the other; the rest is its run and what it imports.
        for (const phase of PHASES.slice(0, -1)) {
          const length = each[phase] / (to - from) * width;
          pen.fillStyle = COLOURS[phase];
          pen.fillRect(at, y, Math.min(length, end - at), ROW - 2);
          at += length;
        }
        pen.fillStyle = COLOURS.exec;
        if (end > at) pen.fillRect(at, y, end - at, ROW - 2);
      }
      if (each === chosen) {
        pen.strokeStyle = ink;
        pen.lineWidth = 2;
        pen.strokeRect(x, y, wide, ROW - 2);
      }
      const left = Math.max(x, 0), room = Math.min(end, width) - left;
      if (room > 34) {
        pen.save();
        pen.beginPath();
        pen.rect(left, y, room, ROW);
        pen.clip();
        pen.fillStyle = "#fff";
        pen.shadowColor = "#000a";
        pen.shadowBlur = 2;
        pen.fillText(each.name, left + 3, y + ROW / 2 - 1);
        pen.restore();
      }
    }
    pen.globalAlpha = 1;
  }
}

function under(event, process) {
  const canvas = event.currentTarget, [from, to] = view || [0, span()];
  const time = from + event.offsetX / canvas.clientWidth * (to - from), row = Math.floor(event.offsetY / ROW) - 1;
  return process.imports.find((each) => each.row === row && time >= each.start - process.began && time <= each.start - process.began + each.total);
}

function zoom(from, to) {
  const all = span(), least = 1000;
  if (to - from >= all) view = null;
  else {
    const width = Math.max(to - from, least), start = Math.min(Math.max(0, from), all - width);
    view = [start, start + width];
  }
  draw();
}

function zoomTo(each, process) {
  const start = each.start - process.began;
  zoom(start - each.total * 0.02, start + each.total * 1.02);
}

for (const [canvas, process] of charts) {
  let held = null, hasMoved = false;
  canvas.addEventListener("mousedown", (event) => { held = { x: event.offsetX, view: view || [0, span()] }; hasMoved = false; });
  window.addEventListener("mouseup", () => { held = null; });
  canvas.addEventListener("mousemove", (event) => {
    if (held && Math.abs(event.offsetX - held.x) > 3) {
      hasMoved = true;
      const by = (held.x - event.offsetX) / canvas.clientWidth * (held.view[1] - held.view[0]);
      if (view) zoom(held.view[0] + by, held.view[1] + by);
    }
    const each = under(event, process()), tip = byId("tip");
    tip.hidden = !each;
    if (each) {
      tip.textContent = `${each.name}\n${ms(each.total)} ms, itself ${ms(each.self_time)} ms\n${servedBy(each)}`;
      tip.style.left = `${Math.min(event.clientX + 14, window.innerWidth - 300)}px`;
      tip.style.top = `${event.clientY + 16}px`;
    }
  });
  canvas.addEventListener("mouseleave", () => { byId("tip").hidden = true; });
  canvas.addEventListener("click", (event) => {
    const each = hasMoved ? null : under(event, process());
    if (!each) return;
    if (process() === shown) choose(each);
    zoomTo(each, process());
  });
  canvas.addEventListener("wheel", (event) => {
    if (event.deltaY === 0) return;
    event.preventDefault();
    const [from, to] = view || [0, span()], at = from + event.offsetX / canvas.clientWidth * (to - from);
    const factor = event.deltaY > 0 ? 1.25 : 0.8;
    zoom(at - (at - from) * factor, at + (to - at) * factor);
  }, { passive: false });
}

// -- table ----------------------------------------------------------------------------------------------------------

const servedBy = (each) => [MEANING[each.served] || each.served, each.served === "nobody" ? "" : each.reason, each.error && `raised ${each.error}`].filter(Boolean).join(": ");
const there = (each) => compared && (compared.byName ||= new Map(compared.imports.map((one) => [one.name, one]))).get(each.name);
const COLUMNS = [
  ["module", (each) => each.name], ["self_time", (each) => each.self_time], ["total", (each) => each.total],
  ...["find", "read", "unmarshal", "compile", "dlopen", "exec"].map((phase) => [phase, (each) => each[phase]]),
  ["there", (each) => (there(each) ? there(each).self_time : -1)],
  ["difference", (each) => (there(each) ? each.self_time - there(each).self_time : each.self_time)],
  ["served by", servedBy], ["imported by", (each) => (each.importer ? `${each.importer}:${each.line}` : "")],
];
const NAMES = { self_time: "self ms", total: "total ms", there: "self there" };
const columns = () => COLUMNS.filter(([name]) => compared || !["there", "difference"].includes(name));
const isText = (name) => ["module", "served by", "imported by"].includes(name);

function head() {
  const row = byId("head");
  row.replaceChildren(...columns().map(([name]) => {
    const cell = make("th", undefined, isText(name) ? "text" : ""), button = make("button", (NAMES[name] || name) + (sort.key === name ? (sort.up ? " ▲" : " ▼") : ""));
    button.type = "button";
    button.addEventListener("click", () => { sort = { key: name, up: sort.key === name ? !sort.up : isText(name) }; table(); });
    cell.setAttribute("aria-sort", sort.key === name ? (sort.up ? "ascending" : "descending") : "none");
    cell.append(button);
    return cell;
  }));
}

function sorted(list) {
  const value = COLUMNS.find(([name]) => name === sort.key)[1], way = sort.up ? 1 : -1;
  return [...list].sort((one, two) => {
    const a = value(one), b = value(two);
    return (typeof a === "string" ? a.localeCompare(b) : a - b) * way || one.start - two.start;
  });
}

function visible() {
  if (words || !isTree) return sorted(shown.imports.filter(isMatch)).map((each) => [each, 0]);
  const found = [], walk = sorted(shown.roots).reverse().map((each) => [each, 0]);
  while (walk.length) {
    const [each, depth] = walk.pop();
    found.push([each, depth]);
    if (each.isOpen) walk.push(...sorted(each.inner).reverse().map((inner) => [inner, depth + 1]));
  }
  return found;
}

function table() {
  head();
  const all = visible();
  byId("rows").replaceChildren(...all.slice(0, limit).map(([each, depth]) => {
    const row = make("tr", undefined, (each.error ? "failed " : "") + (each === chosen ? "chosen" : ""));
    for (const [name, value] of columns()) {
      if (name === "module") {
        const cell = make("td");
        cell.style.paddingLeft = `${0.5 + depth * 1.1}rem`;
        const toggle = make("button", isTree && !words && each.inner.length ? (each.isOpen ? "▾" : "▸") : "", "toggle");
        toggle.type = "button";
        toggle.disabled = !toggle.textContent;
        if (toggle.textContent) toggle.setAttribute("aria-expanded", each.isOpen);
        toggle.addEventListener("click", (event) => { event.stopPropagation(); each.isOpen = !each.isOpen; table(); });
        const mark = make("span", undefined, "mark");
        mark.style.background = COLOURS[each.served] || "#888";
        cell.append(toggle, mark, each.name);
        cell.title = each.name;
        row.append(cell);
      } else if (isText(name)) {
        const cell = make("td", value(each), "text");
        cell.title = value(each);
        row.append(cell);
      } else {
        const time = value(each), isGone = name === "there" && time < 0;
        const cell = make("td", isGone || (time === 0 && name !== "self_time") ? "" : (name === "difference" && time > 0 ? "+" : "") + ms(time));
        if (name === "difference") cell.className = time > 0 ? "worse" : "better";
        row.append(cell);
      }
    }
    row.addEventListener("click", () => choose(each));
    return row;
  }));
  byId("more").hidden = all.length <= limit;
  byId("more").textContent = `${all.length - limit} more`;
  byId("matches").textContent = words ? `${shown.imports.filter(isMatch).length} of ${shown.imports.length}` : "";
  byId("as-tree").setAttribute("aria-pressed", isTree && !words);
  byId("as-list").setAttribute("aria-pressed", !isTree || Boolean(words));
}

// -- one module -----------------------------------------------------------------------------------------------------

function choose(each) {
  chosen = each;
  const box = byId("details");
  box.hidden = !each;
  if (each) {
    const chain = [];
    for (let outer = each.outer; outer; outer = outer.outer) chain.push(outer.name);
    const other = there(each);
    const facts = {
      "total": `${ms(each.total)} ms, ${each.inner.length} imports within`, "self": `${ms(each.self_time)} ms`,
      "phases": [...PHASES, "other"].filter((phase) => each[phase]).map((phase) => `${phase} ${ms(each[phase])}`).join(", "),
      "there": other && `${ms(other.total)} ms, self ${ms(other.self_time)} ms`,
      "served by": servedBy(each), "file": each.origin, "loader": each.loader, "manifest": each.manifest, "pack": each.pack,
      "imported by": each.importer && `${each.importer}, line ${each.line}`, "within": chain.join(" ← "),
    };
    box.querySelector("h2").textContent = each.name;
    box.querySelector("dl").replaceChildren(...Object.entries(facts).filter(([, value]) => value).flatMap(([name, value]) => [make("dt", name), make("dd", value)]));
  }
  table();
  draw();
}

// -- controls -------------------------------------------------------------------------------------------------------

function legend() {
  const isServed = byId("colour").value === "served";
  const names = isServed ? SERVED.filter((name) => shown.imports.some((each) => each.served === name)) : [...PHASES, "other"].filter((name) => shown.imports.some((each) => each[name]));
  byId("legend").replaceChildren(...names.map((name) => {
    const own = isServed ? shown.imports.filter((each) => each.served === name) : null;
    const item = make("li"), mark = make("span");
    mark.style.background = COLOURS[name];
    const amount = own ? `${own.length} modules, ${ms(total(own, (each) => each.self_time))} ms` : `${ms(total(shown.imports, (each) => each[name]))} ms`;
    item.append(mark, `${name} ${amount}`);
    item.title = MEANING[name] || "";
    return item;
  }));
}

function everything() {
  describe();
  legend();
  table();
  draw();
}

function fill(select, list, at, use) {
  list.forEach((process, index) => { const option = make("option", process.label); option.value = index; select.append(option); });
  select.value = at;
  select.addEventListener("change", () => { use(list[select.value]); view = null; chosen = null; byId("details").hidden = true; everything(); });
}
fill(byId("process"), processes[0], data.chosen, (process) => { shown = process; });
byId("process-label").hidden = processes[0].length < 2;
if (compared) {
  fill(byId("other"), processes[1], data.compared, (process) => { compared = process; });
  for (const name of ["other-label", "other-chart", "chart-name"]) byId(name).hidden = false;
  byId("chart-name").textContent = shown.mode;
  byId("other-name").textContent = `compared: ${compared.mode}`;
}
byId("colour").addEventListener("change", () => { legend(); draw(); });
byId("search").addEventListener("input", (event) => { words = event.target.value.trim().toLowerCase(); limit = FEW; table(); draw(); });
byId("controls").addEventListener("submit", (event) => event.preventDefault());
byId("whole").addEventListener("click", () => { view = null; draw(); });
byId("close").addEventListener("click", () => choose(null));
byId("more").addEventListener("click", () => { limit += FEW; table(); });
byId("as-tree").addEventListener("click", () => { isTree = true; table(); });
byId("as-list").addEventListener("click", () => { isTree = false; limit = FEW; table(); });
for (const [name, isOpen] of [["expand", true], ["collapse", false]]) {
  byId(name).addEventListener("click", () => { for (const each of shown.imports) each.isOpen = isOpen; isTree = true; table(); });
}
const THEMES = ["system", "light", "dark"];
byId("theme").addEventListener("click", () => {
  const next = THEMES[(THEMES.indexOf(document.documentElement.dataset.theme || "system") + 1) % 3];
  document.documentElement.dataset.theme = next;
  byId("theme").textContent = `Theme: ${next}`;
  draw();
});
window.addEventListener("keydown", (event) => {
  if (event.key === "/" && event.target !== byId("search")) { event.preventDefault(); byId("search").focus(); }
  if (event.key === "Escape") { view = null; if (event.target === byId("search")) byId("search").blur(); choose(null); }
});
window.addEventListener("resize", draw);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
everything();
}
