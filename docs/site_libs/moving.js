// Pictures that move: what `lossbook.moving` wrote into a page, drawn anew whenever a slider is moved.
// An element .moving carries its formulas in data-spec; the static picture of its cell gives way to it
(() => {
  const half = (v) => { // rounds to float16
    if (!Number.isFinite(v) || v === 0) return v;
    const step = 2 ** (Math.max(Math.floor(Math.log2(Math.abs(v))), -14) - 10), n = v / step, down = Math.floor(n);
    const up = n - down > 0.5 || (n - down === 0.5 && down % 2 !== 0);
    const r = (down + (up ? 1 : 0)) * step;
    return Math.abs(r) >= 65520 ? Math.sign(r) * Infinity : r;
  };
  const fns = { exp: Math.exp, log: Math.log, sqrt: Math.sqrt, abs: Math.abs, min: Math.min, max: Math.max, pow: Math.pow, half, where: (c, a, b) => (c ? a : b) };
  const make = (tag, attrs = {}, ...kids) => {
    const e = document.createElement(tag);
    for (const [k, v] of Object.entries(attrs)) e.setAttribute(k, v);
    e.append(...kids);
    return e;
  };
  const draw = (tag, attrs = {}) => {
    const e = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [k, v] of Object.entries(attrs)) e.setAttribute(k, v);
    return e;
  };
  // a function of an object of names: what is given first, then the formulas, in the order of a list
  const compile = (names, given, formulas) => {
    const body = `${given.map(([k, f]) => `const ${k} = ${f};`).join("\n")} return [${formulas.join(", ")}];`;
    const f = new Function(...Object.keys(fns), ...names, body);
    return (values) => f(...Object.values(fns), ...names.map((k) => values[k]));
  };
  const shown = (v) => {
    if (!Number.isFinite(v)) return Number.isNaN(v) ? "nan" : v > 0 ? "inf" : "-inf";
    const a = Math.abs(v);
    return a >= 1000 || (Number.isInteger(v) && a < 1e15) ? Math.round(v).toLocaleString("en") : a && a < 1e-3 ? v.toExponential(1) : String(Number(v.toPrecision(3)));
  };
  const colour = (e, name) => getComputedStyle(e).getPropertyValue(name).trim();
  let count = 0;

  // a row of a slider or switch with its name and value; `change` is called whenever it moves
  const controls = (spec, values, change) => {
    const inputs = {};
    const rows = Object.entries(spec.sliders).map(([k, s]) => {
      const id = `moving-${count}-${k}`, label = (spec.names || {})[k] || k;
      const input = s.length ? make("input", { type: "range", id, min: s[0], max: s[1], step: s[2], value: s[3] }) : make("input", { type: "checkbox", id, role: "switch" });
      if (!s.length) input.checked = Boolean(s.start);
      const out = make("output", { for: id });
      const read = () => {
        values[k] = s.length ? Number(input.value) : Number(input.checked);
        out.textContent = s.length ? shown(values[k]) : "";
      };
      input.addEventListener("input", () => { read(); change(); });
      read();
      inputs[k] = { input, read };
      return make("div", { class: "moving-control" }, make("label", { for: id }, label), input, out);
    });
    return [make("div", { class: "moving-controls" }, ...rows), inputs];
  };

  const readings = (spec) => {
    const outs = Object.keys(spec.says).map(() => make("output"));
    const rows = Object.keys(spec.says).map((k, i) => make("div", {}, make("span", {}, k), outs[i]));
    return [make("div", { class: "moving-says" }, ...rows), (vs) => vs.forEach((v, i) => { if (outs[i].textContent !== shown(v)) outs[i].textContent = shown(v); })];
  };

  const legend = (labels, colours, dashes) => make("ul", { class: "moving-legend" }, ...labels.map((k, i) => {
    const line = draw("svg", { width: 26, height: 8, "aria-hidden": "true" });
    line.append(draw("line", { x1: 0, x2: 26, y1: 4, y2: 4, stroke: colours[i], "stroke-width": 2.2, "stroke-dasharray": dashes ? dashes[i].join(" ") : "" }));
    return make("li", {}, line, k);
  }));

  const curves = (box, spec) => {
    const labels = Object.keys(spec.curves), [name, lo, hi] = spec.x, n = spec.points;
    const x = Array.from({ length: n }, (_, i) => lo + ((hi - lo) * i) / (n - 1));
    const values = {}, says = Object.values(spec.says);
    const names = Object.keys(spec.sliders);
    const line = compile([name, ...names], spec.given, Object.values(spec.curves));
    const numbers = compile(names, spec.given_says, says);
    const [said, say] = readings(spec);
    const stage = make("div", { class: "moving-stage", role: "img", "aria-label": spec.alt });
    let plot;
    const change = () => {
      const rows = x.map((o) => line({ ...values, [name]: o }));
      const data = [x, ...labels.map((_, j) => rows.map((r) => r[j]))];
      box.shown = { curves: data.slice(1), says: numbers(values) };
      say(box.shown.says);
      if (plot) plot.setData(data.map((c, j) => (j ? c.map((v) => (Number.isFinite(v) ? v : null)) : c)), false);
    };
    const [rows] = controls(spec, values, change);
    box.append(make("div", { class: "moving-head" }, legend(labels, spec.colours, spec.dashes)), stage, rows, said);
    const axis = (label, size) => ({ label, size, labelSize: 22, labelGap: 2, gap: 4, font: "12px system-ui, sans-serif", labelFont: "12px system-ui, sans-serif",
      stroke: () => colour(box, "--bs-body-color"), grid: { stroke: () => colour(box, "--bs-border-color"), width: 1 }, ticks: { show: false } });
    const size = () => ({ width: stage.clientWidth, height: Math.round(Math.min(300, Math.max(210, stage.clientWidth * 0.52))) });
    const start = () => {
      if (plot) plot.destroy();
      plot = new uPlot({
        ...size(), legend: { show: false }, cursor: { drag: { x: false, y: false }, points: { size: 6 } },
        scales: { x: { time: false, range: [lo, hi] }, y: { range: spec.ylim } },
        axes: [axis(spec.xlabel, 30), axis(spec.ylabel, 46)],
        series: [{}, ...labels.map((label, i) => ({ label, stroke: spec.colours[i], width: 2, dash: spec.dashes[i].length ? spec.dashes[i] : undefined, points: { show: false } }))],
      }, [x, ...labels.map(() => x.map(() => null))], stage);
      change();
    };
    start();
    new ResizeObserver(() => { if (stage.clientWidth && stage.clientWidth !== plot.width) plot.setSize(size()); }).observe(stage);
    new MutationObserver(start).observe(document.documentElement, { attributes: true, attributeFilter: ["data-scheme"] });
  };

  // horizontal bars: a row for each bar of each curve, from the zero line
  const bars = (box, spec) => {
    const labels = Object.keys(spec.curves), values = {}, names = Object.keys(spec.sliders);
    const lengths = compile(names, spec.given, Object.values(spec.curves).flat());
    const numbers = compile(names, spec.given_says, Object.values(spec.says));
    const [said, say] = readings(spec), at = (v, [lo, hi]) => (100 * (v - lo)) / (hi - lo);
    const cells = [];
    const panels = labels.map((label, i) => {
      const rows = spec.bars.map((b) => {
        const bar = make("span", { class: "moving-bar" }), out = make("output");
        bar.style.background = spec.colours[i];
        const zero = make("span", { class: "moving-zero" });
        zero.style.left = `${at(0, spec.ylims[i])}%`;
        cells.push([bar, out]);
        return make("div", { class: "moving-row" }, make("span", { class: "moving-name" }, b), make("span", { class: "moving-track", "aria-hidden": "true" }, bar, zero), out);
      });
      return make("div", { class: "moving-panel" }, make("p", { class: "moving-title" }, label), ...rows);
    });
    const change = () => {
      const vs = lengths(values), k = spec.bars.length;
      box.shown = { curves: labels.map((_, i) => vs.slice(i * k, (i + 1) * k)), says: numbers(values) };
      say(box.shown.says);
      vs.forEach((v, i) => {
        const range = spec.ylims[Math.floor(i / k)], w = Number.isFinite(v) ? Math.min(Math.max(v, range[0]), range[1]) : 0;
        cells[i][0].style.left = `${at(Math.min(w, 0), range)}%`;
        cells[i][0].style.width = `${at(Math.abs(w), range) - at(0, range)}%`;
        cells[i][1].textContent = Number.isFinite(v) ? v.toFixed(3) : shown(v);
      });
    };
    const [rows] = controls(spec, values, change);
    box.append(make("div", { class: "moving-stage moving-bars", role: "group", "aria-label": spec.alt }, ...panels), rows, said);
    change();
  };

  // a label that can be dragged over the simplex, above a map of the loss of every prediction
  const simplex = (box, spec) => {
    const n = spec.points, kinds = Object.keys(spec.curves), values = {}, side = 300, high = (side * Math.sqrt(3)) / 2, pad = 26;
    const loss = Object.fromEntries(kinds.map((k) => [k, compile(["p1", "p2", "p3", "y1", "y2", "y3"], [], [spec.curves[k]])]));
    const point = (p) => [pad + side * (p[1] + p[2] / 2), pad + high * (1 - p[2])];
    const share = (x, y) => {
      const p3 = 1 - (y - pad) / high, p2 = (x - pad) / side - p3 / 2, p = [1 - p2 - p3, p2, p3].map((v) => Math.max(v, 0));
      const sum = p[0] + p[1] + p[2];
      return p.map((v) => v / sum);
    };
    const svg = draw("svg", { viewBox: `0 0 ${side + 2 * pad} ${high + 2 * pad}`, role: "img", "aria-label": spec.alt });
    const places = [];
    for (let i = 0; i < n; i++) for (let j = 0; j < n - i; j++) {
      // the middle of each small triangle, upright and upside down
      for (const up of i + j < n - 1 ? [true, false] : [true]) {
        const d = up ? [[0, 0], [1, 0], [0, 1]] : [[1, 0], [0, 1], [1, 1]];
        const ps = d.map(([a, b]) => [1 - (i + a + j + b) / n, (i + a) / n, (j + b) / n]);
        const cell = draw("polygon", { points: ps.map((p) => point(p).map((v) => v.toFixed(2)).join(",")).join(" ") });
        const mid = [0, 1, 2].map((k) => (ps[0][k] + ps[1][k] + ps[2][k]) / 3);
        places.push([mid, cell]);
        svg.append(cell);
      }
    }
    const least = draw("path", { d: "M-6,-6L6,6M-6,6L6,-6", class: "moving-least" });
    const label = draw("circle", { r: 9, class: "moving-label" });
    svg.append(label, least);
    spec.bars.forEach((b, k) => {
      const t = draw("text", { x: point([0, 1, 2].map((o) => Number(o === k)))[0], y: k === 2 ? pad - 9 : pad + high + 19, "text-anchor": "middle" });
      t.textContent = b;
      svg.append(t);
    });
    const kind = make("select", { id: `moving-${count}-kind` }, ...kinds.map((k) => make("option", { value: k }, k)));
    const [said, say] = readings(spec);
    const change = () => {
      const v = [values.y1, values.y2, values.y3], sum = v[0] + v[1] + v[2], y = sum ? v.map((o) => o / sum) : [1 / 3, 1 / 3, 1 / 3];
      const f = loss[kind.value], at = (p) => f({ p1: p[0], p2: p[1], p3: p[2], y1: y[0], y2: y[1], y3: y[2] })[0];
      const vs = places.map(([p]) => at(p)), lo = Math.min(...vs), hi = Math.max(...vs), own = at(y);
      const best = own <= lo ? y : places[vs.indexOf(lo)][0]; // the label itself is on no grid
      places.forEach(([, cell], i) => {
        const t = Math.floor(12 * Math.sqrt((vs[i] - lo) / (hi - lo || 1))) / 12;
        const c = `color-mix(in oklab, #f7fbff ${Math.round(100 * t)}%, #08519c)`;
        cell.style.fill = c;
        cell.style.stroke = c;
      });
      label.setAttribute("transform", `translate(${point(y)})`);
      least.setAttribute("transform", `translate(${point(best)})`);
      box.shown = { curves: [spec.at.map((i) => vs[i])], says: [...best, own <= lo ? own : lo] };
      say(box.shown.says);
    };
    const [rows, inputs] = controls(spec, values, change);
    kind.addEventListener("input", change);
    const move = (e) => {
      const r = svg.getBoundingClientRect(), scale = (side + 2 * pad) / r.width;
      const y = share((e.clientX - r.left) * scale, (e.clientY - r.top) * scale);
      y.forEach((v, k) => { inputs[`y${k + 1}`].input.value = Math.round(100 * v); inputs[`y${k + 1}`].read(); });
      change();
    };
    svg.addEventListener("pointerdown", (e) => { svg.setPointerCapture(e.pointerId); move(e); });
    svg.addEventListener("pointermove", (e) => { if (svg.hasPointerCapture(e.pointerId)) move(e); });
    const choice = make("div", { class: "moving-control" }, make("label", { for: kind.id }, "loss"), kind);
    rows.prepend(choice);
    box.append(make("div", { class: "moving-stage moving-simplex" }, svg), rows, said);
    change();
  };

  const begin = () => document.querySelectorAll(".moving[data-spec]").forEach((box) => {
    const spec = JSON.parse(box.dataset.spec);
    count += 1;
    const cell = box.closest(".cell"), img = cell && cell.querySelector("img");
    if (!spec.alt) spec.alt = (img && img.alt) || "A picture with sliders";
    box.setAttribute("role", "group");
    box.setAttribute("aria-label", "A picture with sliders");
    ({ curves, bars, simplex })[spec.kind](box, spec);
    if (img) { // its caption stays, below
      const figure = img.closest("figure"), caption = figure && figure.querySelector("figcaption");
      if (caption) box.append(make("p", { class: "moving-caption" }, ...caption.childNodes));
      (img.closest(".cell-output-display") || img).hidden = true;
    }
  });
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", begin);
  else begin();
})();
