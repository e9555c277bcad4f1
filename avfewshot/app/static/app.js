"use strict";
/* The page of `avfs serve`: what the server says, shown by clips.js; what a person says, sent to the server. */
(() => {
  const { el, percent, List, Detail } = Clips;
  const $ = (id) => document.getElementById(id);
  const rows = new Map();
  const tab = sessionStorage.getItem("tab") || crypto.getRandomValues(new Uint32Array(3)).join("-");
  sessionStorage.setItem("tab", tab);
  let state = null, version = 0, fetching = false, detail = null, open = null, startAt = 0, found = new Map();

  async function ask(path, method = "GET", body) {
    const options = { method, headers: { "X-Tab": tab } };
    if (body instanceof FormData) options.body = body;
    else if (body !== undefined) { options.body = JSON.stringify(body); options.headers["Content-Type"] = "application/json"; }
    const answer = await fetch(path, options);
    const content = await answer.json().catch(() => ({ error: `${answer.status} ${answer.statusText}` }));
    if (!answer.ok) throw new Error(content.error || answer.statusText);
    return content;
  }
  const say = (text) => { $("status").textContent = text; };
  function complain(error) {
    $("alert").hidden = !error;
    $("alert").textContent = error ? (error instanceof TypeError ? "The server does not answer. What was set so far is kept." : error.message) : "";
  }
  /** Do something that may fail, and say so where it does. */
  const attempt = (action) => async (event) => {
    if (event && event.preventDefault) event.preventDefault();
    try { complain(null); return await action(event); } catch (error) { complain(error); return null; }
  };

  // ------------------------------------------------------------------------------------------ the list

  const figure = (key) => ({ kind: "figure", show: (row) => percent(row[key]) });
  const list = new List($("list"), {
    columns: [
      { name: "label", show: (row) => row.error ? el("span", { class: "no" }, row.error) : [
        el("span", { class: row.mine ? "mine" : null }, row.shown || "…"),
        row.mine ? el("span", { class: "badge" }, "by you") : null, row.seconds ? el("span", { class: "badge" }, `${row.seconds} s by you`) : null,
        row.doubted ? el("span", { class: "badge" }, "the others disagree") : null] },
      { name: "score", ...figure("score") }, { name: "margin", ...figure("margin") }, { name: "disagreement", ...figure("disagreement") },
    ],
    filters: [
      { key: "", name: "all clips", test: () => true },
      { key: "unlabelled", name: "without a correction", test: (row) => !row.mine && !row.seconds && !row.error },
      { key: "labelled", name: "corrected by you", test: (row) => row.mine || row.seconds },
      { key: "doubted", name: "corrected, the others disagree", test: (row) => row.doubted },
      { key: "unknown", name: "unknown", test: (row) => row.unknown && !row.mine },
      { key: "unsure", name: "unsure (below 30 %)", test: (row) => row.score < 0.3 && !row.mine },
      { key: "apart", name: "sight and sound disagree", test: (row) => row.disagreement > 0.5 },
      { key: "failed", name: "not readable", test: (row) => row.error },
    ],
    sorts: [
      { key: "path", name: "name", by: (row) => row.path.toLowerCase() },
      { key: "score-", name: "score, highest first", by: (row) => row.score === undefined ? null : -row.score },
      { key: "score", name: "score, lowest first", by: (row) => row.score },
      { key: "margin", name: "margin, smallest first", by: (row) => row.margin },
      { key: "disagreement", name: "disagreement, largest first", by: (row) => row.disagreement === null || row.disagreement === undefined ? null : -row.disagreement },
      { key: "new", name: "added last", by: (row) => -row.id },
    ],
    thumb: (row) => row.error ? null : `/api/clips/${row.id}/frame?second=${Math.floor((row.duration || 0) / 2)}`,
    open: (row) => show(row.id),
    select: (ticked) => {
      $("bulk").hidden = ticked.size === 0;
      $("bulk-count").textContent = `${ticked.size} selected`;
    },
  });
  const scope = el("select", { id: "scope", onchange: () => search() }, [["names", "in names"], ["both", "in sight and sound"], ["sight", "in sight"], ["sound", "in sound"]].map(([value, name]) => el("option", { value }, name)));
  list.bar.firstChild.after(el("label", { class: "field" }, el("span", {}, "Where"), scope));
  list.search.addEventListener("keydown", (event) => { if (event.key === "Enter") search(); });
  list.search.addEventListener("input", () => { if (list.order && !list.search.value) { list.order = null; list.change(); } });

  /** By content: clips with the second that fits best, in that order. */
  const search = attempt(async () => {
    const text = list.search.value.trim();
    found = new Map();
    list.order = null;
    if (text && scope.value !== "names") {
      const answer = await ask(`/api/find?${new URLSearchParams({ q: text, by: scope.value, top: 200 })}`);
      found = new Map(answer.found.map((hit) => [hit.id, hit.second]));
      list.order = answer.found.map((hit) => hit.id);
      say(`${answer.found.length} clips, those that fit “${text}” best first.`);
    }
    list.change();
  });

  // ------------------------------------------------------------------------------------------ news from the server

  let drawing = 0;
  function draw() {
    clearTimeout(drawing);
    drawing = setTimeout(() => list.set([...rows.values()]), rows.size > 2000 ? 400 : 60);
  }

  async function fetchRows() {
    if (fetching) return;
    fetching = true;
    try {
      while (state && version < state.version) {
        const answer = await ask(`/api/clips?since=${version}`);
        version = answer.version;
        for (const row of answer.clips) {
          row.shown = row.mine || (row.unknown ? "unknown" : row.label);
          rows.set(row.id, row);
        }
        if (answer.clips.length) draw();
        if (open !== null && answer.clips.some((row) => row.id === open)) await refresh();
      }
    } catch (error) { complain(error); } finally { fetching = false; }
  }

  function told(news) {
    const before = state;
    if (before && news.version < before.version) { version = 0; rows.clear(); } // another server
    state = news;
    $("folder").textContent = news.folder;
    $("facts").textContent = `${news.clips.toLocaleString("en")} clips, ${news.classes.length} labels, ${news.labelled} corrected · ${news.backbone}${news.adapter ? ` with ${news.adapter}` : ""} · kept in ${news.labels_file}`;
    const busy = news.embedded < news.clips, scoring = !busy && news.stale > 0;
    $("working").hidden = !busy && !scoring;
    $("progress").value = busy ? news.embedded / Math.max(news.clips, 1) : 1 - news.stale / Math.max(news.clips, 1);
    $("working-text").textContent = busy ? `${news.embedded.toLocaleString("en")} of ${news.clips.toLocaleString("en")} read` : `scoring, ${news.stale.toLocaleString("en")} left`;
    const learnt = news.learnt;
    $("learnt").textContent = !news.classes.length ? "No labels yet: type some with “Labels …”." : !learnt ? "Nothing learnt yet: scores go by the words of the labels." :
      `Learnt from ${learnt.clips} clip${learnt.clips === 1 ? "" : "s"} in ${learnt.seconds.toFixed(2)} s; ${learnt.accuracy === null ? "with one clip a class nothing can be left out to judge it" : `leave-one-out accuracy ${percent(learnt.accuracy)}`}.`;
    const names = news.classes.map((one) => one.name).join("\n");
    if (!before || names !== before.classes.map((one) => one.name).join("\n")) {
      $("class-names").replaceChildren(...[...news.classes.map((one) => one.name), "none"].map((value) => el("option", { value })));
    }
    fetchRows();
  }

  function listen() {
    const source = new EventSource("/api/events");
    source.onmessage = (event) => { complain(null); told(JSON.parse(event.data)); };
    source.onerror = () => { if (!leaving) complain(new TypeError()); };
    return source;
  }
  let leaving = false;
  addEventListener("pagehide", () => { leaving = true; });

  // ------------------------------------------------------------------------------------------ the open clip

  async function show(id) {
    if (detail === null) {
      detail = new Detail($("detail"), {
        source: (clip) => clip.error ? null : `/api/clips/${clip.id}/media`,
        frames: (clip, second) => clip.video ? `/api/clips/${clip.id}/frame?size=320&second=${second}` : null,
        slot: $("correct"),
        picked: (begin, end) => { $("from").value = begin; $("to").value = end; },
      });
    }
    if (open !== id) { $("from").value = $("to").value = $("label").value = ""; detail.picked = null; }
    open = id;
    startAt = found.get(id) || 0;
    $("open").hidden = false;
    await attempt(refresh)();
    if (startAt) { detail.go(startAt); startAt = 0; }
    if (innerWidth < 1024) $("open").scrollIntoView({ block: "start" });
    detail.title.focus({ preventScroll: innerWidth >= 1024 });
  }

  async function refresh() {
    const id = open, clip = await ask(`/api/clips/${id}`);
    if (id !== open) return;
    clip.unknown = Boolean(rows.get(id) && rows.get(id).unknown);
    detail.show(clip);
  }

  async function correct(ids, label, start, end) {
    const known = state.classes.some((one) => one.name === label) || label === null || label === "none";
    await ask("/api/label", "POST", { ids, label, start, end, wording: known ? null : label });
    const what = start === null ? (ids.length === 1 ? rows.get(ids[0]).path : `${ids.length} clips`) : `Seconds ${start} to ${end}`;
    say(label === null ? `Taken back: ${what}.` : `${what}: ${label}.`);
    if ($("auto").checked) await learn(true);
    if (open !== null) await refresh();
  }
  const span = () => {
    const from = $("from").value, to = $("to").value;
    return from === "" && to === "" ? [null, null] : [Number(from || 0), Number(to || Number(from) + 1)];
  };
  for (const name of ["from", "to"]) {
    $(name).addEventListener("input", () => { const [start, end] = span(); detail.picked = start === null ? null : [start, end]; detail.drawPicked(); });
  }
  $("correct").addEventListener("submit", attempt(() => correct([open], $("label").value.trim(), ...span())));
  $("none").addEventListener("click", attempt(() => correct([open], "none", ...span())));
  $("clear").addEventListener("click", attempt(() => correct([open], null, ...span())));
  $("bulk").addEventListener("submit", attempt(async () => {
    const ids = [...list.ticked], label = $("bulk-label").value.trim();
    await correct(ids, label, null, null);
    ids.forEach((id) => list.ticked.delete(id));  // what was ticked or typed meanwhile stays
    if (list.ticked.size === 0) clearTicks(); else list.render();
  }));
  function clearTicks() { list.ticked.clear(); $("bulk").hidden = true; $("bulk-label").value = ""; list.render(); }
  $("bulk-clear").addEventListener("click", clearTicks);

  // ------------------------------------------------------------------------------------------ tools

  async function learn(quietly) {
    try {
      const { learnt, why } = await ask("/api/learn", "POST");
      if (!quietly && !learnt) throw new Error(why);
      if (!quietly) say(`Relearnt from ${learnt.clips} clips in ${learnt.seconds.toFixed(2)} s.`);
    } catch (error) { if (!quietly) throw error; }
  }
  $("previous").addEventListener("click", () => list.step(-1));
  $("next").addEventListener("click", () => list.step(1));
  $("learn").addEventListener("click", attempt(() => learn(false)));
  $("undo").addEventListener("click", attempt(async () => {
    const answer = await ask("/api/undo", "POST");
    say(answer.undone ? "The last change is taken back." : "There is nothing to take back.");
    if (answer.undone && $("auto").checked) await learn(true);
    if (open !== null) await refresh();
  }));
  $("suggest").addEventListener("click", attempt(async () => {
    say("Looking for clips that would teach it most …");
    const answer = await ask("/api/suggest?count=12");
    list.order = answer.ids;
    list.change();
    say(answer.ids.length ? "These would teach it most. Search for nothing to see all clips again." : "There is nothing to suggest: it takes labels and clips without a correction.");
    if (answer.ids.length) { list.search.value = "suggested"; list.open(rows.get(answer.ids[0])); }
  }));
  $("edit-labels").addEventListener("click", () => {
    $("labels-text").value = state.classes.map((one) => one.wording === one.name ? one.name : `${one.name}: ${one.wording}`).join("\n");
    $("labels-error").hidden = true;
    $("labels-dialog").showModal();
  });
  const inDialog = (name, action) => $(`${name}-apply`).addEventListener("click", async () => {
    try { await action(); $(`${name}-dialog`).close(); } catch (error) { $(`${name}-error`).textContent = error.message; $(`${name}-error`).hidden = false; }
  });
  inDialog("labels", async () => {
    const classes = $("labels-text").value.split("\n").map((line) => line.trim()).filter(Boolean).map((line) => {
      const parts = line.match(/^(.*?):\s+(.*)$/);
      return parts ? { name: parts[1], wording: parts[2] } : { name: line, wording: "" };
    });
    await ask("/api/classes", "PUT", classes);
    say(`${classes.length} labels.`);
  });
  $("save").addEventListener("click", () => { $("save-error").hidden = true; $("save-dialog").showModal(); });
  inDialog("save", async () => {
    const answer = await ask("/api/save", "POST", { name: $("save-name").value.trim() });
    say(`Saved. To predict with it: avfs zeroshot --adapter ${answer.run}`);
  });
  $("help").addEventListener("click", () => $("help-dialog").showModal());

  // ------------------------------------------------------------------------------------------ dropped clips

  const upload = attempt(async (files) => {
    let last = null, done = 0;
    const errors = [];
    for (const file of files) {
      say(`Sending ${++done} of ${files.length}: ${file.name}`);
      const form = new FormData();
      form.append("files", file);
      try {
        const answer = await ask("/api/clips", "POST", form);
        errors.push(...answer.errors);
        if (answer.ids.length) last = answer.ids.at(-1);
      } catch (error) { errors.push(`${file.name}: ${error.message}`); }
    }
    say(`${files.length - errors.length} of ${files.length} clips added.`);
    if (errors.length) complain(new Error(errors.join(" ")));
    if (last !== null) {
      rows.has(last) || await fetchRows();
      list.current = last;
      await show(last);
    }
  });
  $("files").addEventListener("change", async () => { await upload([...$("files").files]); $("files").value = ""; });
  addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("dropping"); });
  addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("dropping"); });
  addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dropping");
    if (event.dataTransfer.files.length) upload([...event.dataTransfer.files]);
  });

  // ------------------------------------------------------------------------------------------ keys

  addEventListener("keydown", (event) => {
    const at = event.target;
    if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    if (at.matches("input:not([type=checkbox]), select, textarea")) { if (event.key === "Escape") at.blur(); return; }
    const media = detail && detail.media;
    const keys = {
      "/": () => list.search.focus(), j: () => list.step(1), k: () => list.step(-1), u: () => $("undo").click(), r: () => $("learn").click(),
      g: () => list.toggle.click(), "?": () => $("help").click(),
      c: () => { if (open !== null) { $("from").value = $("to").value = ""; $("label").focus(); } },
      s: () => { if (open !== null) { const now = Math.floor(Number(detail.seek.value)); detail.pick(Math.min(now, detail.length - 1), Math.min(now + 1, detail.length)); $("label").focus(); } },
      " ": at.matches("button, summary, input, a, video, audio") ? null : () => media && (media.paused ? media.play() : media.pause()),
      ArrowLeft: () => detail && detail.go(Number(detail.seek.value) - 1), ArrowRight: () => detail && detail.go(Number(detail.seek.value) + 1),
    };
    if (keys[event.key]) { event.preventDefault(); keys[event.key](); }
  });

  listen();
})();
