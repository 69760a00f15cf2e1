// Sorts and filters the catalogue, and asks the questions of "Which loss?". Without it both are plain tables.
(() => {
  const make = (tag, props = {}, ...kids) => {
    const e = Object.assign(document.createElement(tag), props);
    e.append(...kids);
    return e;
  };
  const choice = (name, options) => {
    const select = make("select", {}, ...Object.entries(options).map(([value, text]) => make("option", {value, text})));
    return [select, make("label", {}, `${name} `, select)];
  };

  // ---- the catalogue

  function catalogue(table) {
    const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
    const cell = (row, key) => key === "loss" ? row.cells[0] : row.querySelector(`[data-key="${key}"]`) || row.querySelector('[data-key="all"]');
    const rows = [...body.rows].map((row, place) => {
      const [about, more] = [row.querySelector("[data-key=about] p"), row.querySelector("details")];
      const words = [cell(row, "loss"), cell(row, "task"), about, more].map((e) => e ? e.textContent : "").join("\n").toLowerCase();
      return {row, place, more, words, params: more ? more.textContent.toLowerCase() : "", of: (key) => cell(row, key).textContent};
    });
    if (rows.length < 12) return; // short enough to read
    const keys = heads.map((h) => h.dataset.key).filter((k) => !["picture", "about"].includes(k));
    const measured = keys.filter((k) => !["loss", "task"].includes(k));
    let order = {key: "", down: false};

    const find = make("input", {type: "search", autocomplete: "off"});
    const tasks = Object.fromEntries([...new Set(rows.map((r) => r.of("task")))].map((t) => [t, t]));
    const [task, taskLabel] = choice("task", {"": "any", ...tasks});
    const filters = measured.map((k) => {
      const found = new Set(rows.map((r) => r.of(k)));
      const number = !found.has("yes");
      const options = number ? {"": "any", number: "a constant", inf: "none"} : {"": "any", yes: "yes", no: "no"};
      return [k, ...choice(k, {...options, "not measured": "not measured"})];
    });
    const [sort, sortLabel] = choice("sorted by", {"": "chapter", ...Object.fromEntries(keys.map((k) => [k, k]))});
    const reset = make("button", {type: "reset", textContent: "Show all"});
    const count = make("p", {role: "status"});
    const tools = make("form", {className: "catalog-tools"}, make("label", {className: "find"}, "name, parameter or author ", find),
      taskLabel, ...filters.map((f) => f[2]), sortLabel, reset, count);
    tools.setAttribute("aria-label", "Sort and filter the losses");
    table.before(tools);

    const fits = (r) => {
      const q = find.value.trim().toLowerCase();
      if (q && !q.split(/\s+/).every((w) => r.words.includes(w))) return false;
      if (task.value && r.of("task") !== task.value) return false;
      return filters.every(([k, select]) => {
        const [want, got] = [select.value, r.of(k)];
        return !want || (want === "number" ? Number.isFinite(+got) : got === want);
      });
    };
    const rank = (v) => v === "not measured" ? [2, 0] : v === "yes" ? [0, 0] : v === "no" ? [1, 0] : v === "inf" ? [1, 1] : Number.isNaN(+v) ? [0, v.toLowerCase()] : [0, +v];
    const compare = (a, b) => {
      const {key, down} = order;
      if (!key) return a.place - b.place;
      const [[u, x], [v, y]] = [rank(a.of(key)), rank(b.of(key))];
      if ((u === 2) !== (v === 2)) return u - v; // what was not measured stands last, either way
      return (u - v || (x < y ? -1 : x > y ? 1 : 0)) * (down ? -1 : 1) || a.place - b.place;
    };
    const show = () => {
      const q = find.value.trim().toLowerCase();
      let n = 0;
      for (const r of rows) {
        const ok = fits(r);
        r.row.hidden = !ok;
        n += ok;
        if (r.more) r.more.open = q.length > 2 && ok && r.params.includes(q);
      }
      count.textContent = n ? `${n} of ${rows.length} losses` : "No loss is like that.";
    };
    const arrange = () => {
      body.append(...[...rows].sort(compare).map((r) => r.row));
      sort.value = order.key;
      for (const h of heads) {
        if (h.dataset.key !== order.key) h.removeAttribute("aria-sort");
        else h.setAttribute("aria-sort", order.down ? "descending" : "ascending");
      }
    };
    for (const h of heads.filter((h) => keys.includes(h.dataset.key))) {
      const key = h.dataset.key, button = make("button", {type: "button", textContent: key});
      button.addEventListener("click", () => {
        order = {key, down: order.key === key && !order.down};
        arrange();
      });
      h.replaceChildren(button);
    }
    sort.addEventListener("change", () => { order = {key: sort.value, down: false}; arrange(); });
    tools.addEventListener("input", show);
    tools.addEventListener("submit", (e) => e.preventDefault());
    tools.addEventListener("reset", () => setTimeout(() => { order = {key: "", down: false}; arrange(); show(); }));
    show();
  }

  // ---- the questions: each answer leaves the rows that allow it

  function questions(table) {
    const asks = Object.entries(JSON.parse(table.dataset.questions)).map(([key, [text, options]]) => ({key, text, options}));
    const rows = [...table.tBodies[0].rows];
    const allowed = (row, key) => { // none where any reply will do
      const reply = row.querySelector(`[data-key="${key}"]`);
      return reply ? reply.dataset.value.split(" ") : [];
    };
    const open = (left, ask) => { // the answers between which the rows that are left differ
      const sets = left.map((r) => allowed(r, ask.key));
      if (sets.every((s) => s.join() === sets[0].join())) return [];
      return Object.keys(ask.options).filter((o) => sets.some((s) => !s.length || s.includes(o)));
    };
    const form = make("form", {className: "questions-form"}), out = make("div", {className: "answer"});
    form.setAttribute("aria-label", "Five questions");
    out.setAttribute("role", "status");
    const answers = {};

    function step() {
      let left = rows, n = 0;
      const wanted = [];
      for (const ask of asks) {
        const options = left.length > 1 ? open(left, ask) : [];
        if (!options.length) continue;
        wanted.push([ask, options]);
        if (!options.includes(answers[ask.key])) break;
        left = left.filter((r) => { const s = allowed(r, ask.key); return !s.length || s.includes(answers[ask.key]); });
      }
      for (const set of [...form.children]) { // what is still asked stays as it is, with the focus
        const w = wanted.find(([ask, options]) => set.dataset.key === ask.key && set.dataset.open === options.join());
        if (!w) set.remove();
      }
      for (const [ask, options] of wanted) {
        n += 1;
        let set = form.querySelector(`[data-key="${ask.key}"]`);
        if (!set) {
          set = make("fieldset", {}, make("legend", {textContent: ask.text}), ...options.map((o) =>
            make("label", {}, make("input", {type: "radio", name: ask.key, value: o, checked: answers[ask.key] === o}), ` ${ask.options[o]}`)));
          Object.assign(set.dataset, {key: ask.key, open: options.join()});
        }
        form.append(...(form.children[n-1] === set ? [] : [set]));
      }
      for (const k of Object.keys(answers)) if (!form.querySelector(`[data-key="${k}"]`)) delete answers[k];
      out.replaceChildren();
      if (left.length > 1) out.append(make("p", {className: "left", textContent: `${left.length} answers are left.`}));
      else {
        const take = left[0].querySelector("[data-key=take]");
        out.append(...[...take.childNodes].map((o) => o.cloneNode(true)));
        const pre = out.querySelector("pre"), copy = make("button", {type: "button", className: "copy", textContent: "Copy"});
        copy.addEventListener("click", () => {
          const done = () => { copy.textContent = "Copied"; setTimeout(() => { copy.textContent = "Copy"; }, 2000); };
          const marked = () => { // a page from disk may not reach the clipboard: then the text is marked
            getSelection().selectAllChildren(pre);
            if (document.execCommand("copy")) done();
          };
          if (navigator.clipboard) navigator.clipboard.writeText(pre.textContent).then(done, marked);
          else marked();
        });
        pre.after(copy);
      }
    }
    form.addEventListener("change", (e) => { answers[e.target.name] = e.target.value; step(); });
    form.addEventListener("submit", (e) => e.preventDefault());
    const box = table.closest(".cell-output-display") || table.parentElement;
    const all = make("details", {className: "all-answers"}, make("summary", {textContent: "All answers in one table"}));
    table.before(form, out, all);
    all.append(table);
    box.removeAttribute("tabindex");
    step();
  }

  // on paper nothing can be opened
  const folded = ".catalog details, .all-answers";
  addEventListener("beforeprint", () => document.querySelectorAll(folded).forEach((e) => { e.dataset.was = e.open ? "open" : ""; e.open = true; }));
  addEventListener("afterprint", () => document.querySelectorAll(folded).forEach((e) => { e.open = e.dataset.was === "open"; }));

  document.querySelectorAll("table.catalog").forEach(catalogue);
  document.querySelectorAll("table.questions").forEach(questions);
})();
