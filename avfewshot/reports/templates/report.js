"use strict";
/* A static report: the clips that lie in the page as JSON, shown by clips.js. */
(() => {
  const { el, percent, List, Detail } = Clips;
  const data = JSON.parse(document.getElementById("data").textContent);
  const part = (value) => value === null ? null : value / 1000;
  const rows = data.clips.map((clip, id) => ({ id, path: clip.path, shown: clip.label, label: clip.label, score: part(clip.score), margin: part(clip.margin),
    disagreement: part(clip.apart), warned: clip.warnings.length > 0, clip }));
  const pictureAt = (clip, second) => {
    if (clip.thumb) return clip.thumb;
    let best = null;
    for (const [at, source] of clip.pictures || []) if (best === null || Math.abs(at - second) < Math.abs(best[0] - second)) best = [at, source];
    return best && best[1];
  };
  const figure = (key) => ({ kind: "figure", show: (row) => percent(row[key]) });
  const host = document.getElementById("open");
  let detail = null;
  const show = (row) => {
    host.hidden = false;
    detail = detail || new Detail(document.getElementById("detail"), { labels: data.labels, source: (clip) => clip.file || null, frames: pictureAt });
    detail.show({ ...row.clip, id: row.id, unknown: false });
  };
  const list = new List(document.getElementById("list"), {
    columns: [{ name: "label", show: (row) => row.clip.labels ? row.clip.labels.join(", ") : row.label }, { name: "score", ...figure("score") },
      { name: "margin", ...figure("margin") }, { name: "disagreement", ...figure("disagreement") }],
    filters: [{ key: "", name: "all clips", test: () => true }, { key: "unsure", name: "unsure (below 30 %)", test: (row) => row.score < 0.3 },
      { key: "apart", name: "sight and sound disagree", test: (row) => row.disagreement > 0.5 }, { key: "warned", name: "with a remark", test: (row) => row.warned }],
    sorts: [{ key: "order", name: "order of the run", by: (row) => row.id }, { key: "path", name: "name", by: (row) => row.path.toLowerCase() },
      { key: "score-", name: "score, highest first", by: (row) => -row.score }, { key: "score", name: "score, lowest first", by: (row) => row.score },
      { key: "margin", name: "margin, smallest first", by: (row) => row.margin }, { key: "disagreement", name: "disagreement, largest first", by: (row) => row.disagreement === null ? null : -row.disagreement }],
    thumb: (row) => pictureAt(row.clip, row.clip.duration / 2),
    view: rows.length <= 500 ? "grid" : "table",
    open: (row) => { show(row); if (innerWidth < 1024) host.scrollIntoView({ block: "start" }); },
  });
  list.show(list.view);
  list.set(rows);
  if (rows.length) { list.current = rows[0].id; list.render(); show(rows[0]); }
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select")) return;
    const keys = { j: () => list.step(1), k: () => list.step(-1), "/": () => list.search.focus(), ArrowLeft: () => detail.go(Number(detail.seek.value) - 1), ArrowRight: () => detail.go(Number(detail.seek.value) + 1) };
    if (keys[event.key] && detail) { event.preventDefault(); keys[event.key](); }
  });
})();
