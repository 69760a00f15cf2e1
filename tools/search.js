// The search of the site: whole words before parts, lessons before entries, other names of a thing.
// tools/docs.py writes it behind the index
window.lossbookSearch = (index, query, limit) => {
  const words = (s) => (s.match(/[A-Za-z0-9_]+(?:[-.][A-Za-z0-9_]+)*/g) || []).flatMap((w) => {
    const parts = w.replace(/([a-z])([A-Z])/g, "$1 $2").split(/[ _.-]+/);
    return parts.length > 1 ? [w, ...parts] : [w];
  }).map((w) => w.toLowerCase());
  const singular = (w) => (w.length > 3 && w.endsWith("s") && !w.endsWith("ss") ? w.slice(0, -1) : w);
  const asked = query.toLowerCase().split(/[\s,]+/).filter(Boolean).map(singular);
  // how well a word is met by a list of words: whole 1, as a beginning .5, inside .1
  const met = (w, list) => list.reduce((best, o) => Math.max(best, o === w ? 1 : o.startsWith(w) ? 0.5 : w.length > 4 && o.includes(w) ? 0.1 : 0), 0);
  const rows = index.map((e) => {
    const at = (s) => words(s || "").map(singular);
    const parts = [[at(e.section), 6], [at(e.title), e.section ? 2 : 8], [at(e.words), 5], [at(e.text), 1]];
    let score = 0;
    for (const w of asked) {
      const best = Math.max(...parts.map(([list, weight]) => weight * met(w, list)));
      if (!best) return null;
      const often = parts[3][0].filter((o) => o === w).length;
      score += best + Math.min(often, 8) / 10;
    }
    const phrase = asked.join(" ");
    if (asked.length > 1 && parts.some(([list]) => list.join(" ").includes(phrase))) score += 2;
    if (e.entry && query.trim() !== e.section) score -= 2.5;
    if (e.behind) score -= 2;
    return [score, e];
  });
  return rows.filter(Boolean).sort((a, b) => b[0] - a[0]).slice(0, limit).map((o) => o[1]);
};
