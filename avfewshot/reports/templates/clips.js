"use strict";
/* Clips in a list and one by one: what `avfs serve` and the static reports have in common. No library, no markup from data. */
const Clips = (() => {
  // Okabe and Ito's colours first, then as distinct ones as there are; the second is to write on the first.
  const PAINTS = [["#56b4e9", "#000"], ["#e69f00", "#000"], ["#009e73", "#000"], ["#f0e442", "#000"], ["#0072b2", "#fff"],
    ["#d55e00", "#000"], ["#cc79a7", "#000"], ["#7b4ea3", "#fff"], ["#8c6d31", "#fff"], ["#17becf", "#000"], ["#c7e9a0", "#000"], ["#7f0000", "#fff"]];
  const QUIET = ["#b8b8b8", "#000"], QUIET_NAMES = ["background", "silence", "nothing", "none", "unknown"];
  const PAGE = 50;

  /** An element: properties, `data-`, `aria-` and other attributes, listeners (onclick) and children. */
  function el(tag, properties, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(properties || {})) {
      if (value === undefined || value === null || value === false) continue;
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (name === "style") for (const [key, set] of Object.entries(value)) node.style.setProperty(key, set);
      else if (name in node && !name.includes("-") && name !== "list" && name !== "width" && name !== "height") node[name] = value;
      else node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
    return node;
  }

  const percent = (value) => value === null || value === undefined ? "–" : `${(100 * value).toFixed(1)} %`;
  const clock = (seconds) => {
    const whole = Math.floor(seconds), rest = seconds - whole;
    return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}${rest > 0.05 ? `.${Math.floor(rest * 10)}` : ""}`;
  };

  /** A colour for each label of a clip, in order of appearance: distinct within the clip. */
  function paints(names) {
    const table = new Map();
    let used = 0;
    for (const name of names) {
      if (table.has(name)) continue;
      table.set(name, QUIET_NAMES.includes(name.toLowerCase()) ? QUIET : PAINTS[used++ % PAINTS.length]);
    }
    return table;
  }

  const dot = (paint) => el("span", { class: "dot", "aria-hidden": "true", style: { background: paint[0] } });

  /** Runs of one label over the seconds: [label, begin, end, scores]. */
  function runs(flat, name) {
    const found = [];
    for (let second = 0; 2 * second < flat.length; second++) {
      const label = name(flat[2 * second]), score = flat[2 * second + 1] / 1000, last = found.at(-1);
      if (last && last[0] === label) { last[2] = second + 1; last[3].push(score); } else found.push([label, second, second + 1, [score]]);
    }
    return found;
  }

  /** A list with search, sort, filters and pages, as a table or as a grid.
   *  options: columns [{key, name, show(row), sort(row)}], filters [{key, name, test(row)}], sorts [{key, name, by(row)}],
   *  open(row), thumb(row) -> address or null, select: whether rows can be ticked, text(row): what the search looks at. */
  class List {
    constructor(host, options) {
      this.options = options;
      this.rows = [];
      this.order = null; // ids in an order of their own, as a search by content gives it
      this.ticked = new Set();
      this.current = null;
      this.page = 0;
      this.view = options.view || "table";
      const field = (label, control) => el("label", { class: "field" }, el("span", {}, label), control);
      this.search = el("input", { type: "search", id: "search", placeholder: "file, label", oninput: () => this.change() });
      this.filter = el("select", { id: "filter", onchange: () => this.change() });
      this.sort = el("select", { id: "sort", onchange: () => this.change() }, options.sorts.map((s) => el("option", { value: s.key }, s.name)));
      this.toggle = el("button", { type: "button", "aria-pressed": "false", onclick: () => this.show(this.view === "grid" ? "table" : "grid") }, "Grid");
      this.bar = el("div", { class: "bar", role: "search" }, field("Search", this.search), field("Show", this.filter), field("Sort by", this.sort), this.toggle);
      this.count = el("p", { class: "soft count", role: "status" });
      this.body = el("div", { class: "listing" });
      this.back = el("button", { type: "button", onclick: () => this.turn(-1) }, "‹ Previous");
      this.on = el("button", { type: "button", onclick: () => this.turn(1) }, "Next ›");
      this.where = el("span", { class: "soft" });
      this.pages = el("nav", { class: "pages", "aria-label": "Pages" }, this.back, this.where, this.on);
      host.append(this.bar, this.count, this.body, this.pages);
      this.offer();
    }

    /** What can be filtered by: the host's own filters, and the labels that there are. */
    offer() {
      const chosen = this.filter.value, counts = new Map();
      for (const row of this.rows) if (row.shown) counts.set(row.shown, (counts.get(row.shown) || 0) + 1);
      const labels = [...counts].sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1)).slice(0, 300);
      this.filter.replaceChildren(...this.options.filters.map((f) => el("option", { value: f.key }, f.name)),
        el("optgroup", { label: "label" }, labels.map(([name, count]) => el("option", { value: `=${name}` }, `${name} (${count})`))));
      this.filter.value = chosen;
      if (this.filter.selectedIndex < 0) this.filter.selectedIndex = 0;
    }

    set(rows) {
      this.rows = rows;
      this.offer();
      this.render();
    }

    change() { this.page = 0; this.render(); }

    show(view) {
      this.view = view;
      this.toggle.setAttribute("aria-pressed", String(view === "grid"));
      this.render();
    }

    turn(by) { this.page += by; this.render(); this.body.scrollIntoView({ block: "nearest" }); }

    /** Rows that fit, sorted. */
    fitting() {
      const text = this.options.textual === false ? "" : this.search.value.trim().toLowerCase(), key = this.filter.value;
      const test = key.startsWith("=") ? (row) => row.shown === key.slice(1) : (this.options.filters.find((f) => f.key === key) || { test: () => true }).test;
      let rows = this.rows.filter((row) => test(row) && (!text || this.order || `${row.path}\n${row.shown || ""}\n${row.truth || ""}`.toLowerCase().includes(text)));
      if (this.order) {
        const place = new Map(this.order.map((id, index) => [id, index]));
        return rows.filter((row) => place.has(row.id)).sort((a, b) => place.get(a.id) - place.get(b.id));
      }
      const by = this.options.sorts.find((s) => s.key === this.sort.value).by;
      const keys = new Map(rows.map((row) => [row, by(row)]));
      const last = (value) => value === null || value === undefined;
      return rows.sort((a, b) => {
        const x = keys.get(a), y = keys.get(b);
        return last(x) || last(y) ? last(x) - last(y) : x < y ? -1 : x > y ? 1 : a.id - b.id;
      });
    }

    render() {
      const rows = this.fitting(), pages = Math.max(1, Math.ceil(rows.length / PAGE));
      this.page = Math.min(Math.max(this.page, 0), pages - 1);
      this.visible = rows;
      const part = rows.slice(PAGE * this.page, PAGE * (this.page + 1));
      const said = `${rows.length.toLocaleString("en")} of ${this.rows.length.toLocaleString("en")} clips`;
      if (this.count.textContent !== said) this.count.textContent = said;
      this.where.textContent = `Page ${this.page + 1} of ${pages}`;
      this.back.disabled = this.page === 0;
      this.on.disabled = this.page === pages - 1;
      this.pages.hidden = pages < 2;
      const focused = document.activeElement && this.body.contains(document.activeElement) ? document.activeElement.dataset.focus : null;
      this.body.replaceChildren(this.view === "grid" ? this.grid(part) : this.table(part));
      if (focused) { const again = [...this.body.querySelectorAll("[data-focus]")].find((node) => node.dataset.focus === focused); if (again) again.focus(); }
    }

    opener(row, ...children) {
      return el("button", { type: "button", class: "open", "data-focus": `open ${row.id}`, "aria-current": row.id === this.current ? "true" : null, onclick: () => this.open(row) }, children);
    }

    tick(row) {
      return el("input", { type: "checkbox", checked: this.ticked.has(row.id), "data-focus": `tick ${row.id}`, "aria-label": `Select ${row.path}`, onchange: (event) => {
        if (event.target.checked) this.ticked.add(row.id); else this.ticked.delete(row.id);
        if (this.options.select) this.options.select(this.ticked);
      } });
    }

    table(rows) {
      const { columns, select } = this.options;
      const head = el("tr", {}, select ? el("th", { scope: "col" }, el("span", { class: "hidden" }, "Select")) : null,
        el("th", { scope: "col" }, "clip"), columns.map((c) => el("th", { scope: "col", class: c.kind }, c.name)));
      const body = rows.map((row) => el("tr", { class: row.id === this.current ? "current" : null }, select ? el("td", {}, this.tick(row)) : null,
        el("td", { class: "name" }, this.opener(row, row.path)), columns.map((c) => el("td", { class: c.kind, "data-name": c.name }, c.show(row)))));
      return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Clips" }, el("table", { class: "clips" }, el("thead", {}, head), el("tbody", {}, body)));
    }

    grid(rows) {
      return el("ul", { class: "grid" }, rows.map((row) => {
        const source = this.options.thumb(row);
        const picture = source ? el("img", { src: source, alt: "", loading: "lazy", decoding: "async", width: 128, height: 128, onerror: (e) => e.target.replaceWith(el("span", { class: "nopicture" }, "no picture")) }) : el("span", { class: "nopicture" }, "no picture");
        return el("li", { class: row.id === this.current ? "current" : null }, this.options.select ? this.tick(row) : null,
          this.opener(row, picture, el("strong", {}, row.shown || row.error || "…"), el("span", { class: "number" }, row.score === undefined ? "" : percent(row.score)), el("span", { class: "soft path" }, row.path)));
      }));
    }

    open(row) {
      this.current = row.id;
      this.render();
      this.options.open(row);
    }

    /** The clip behind (or before) the open one. */
    step(by) {
      const at = this.visible.findIndex((row) => row.id === this.current);
      const next = this.visible[Math.min(Math.max(at + by, 0), this.visible.length - 1)];
      if (!next) return;
      this.page = Math.floor(this.visible.indexOf(next) / PAGE);
      this.open(next);
    }
  }

  /** One clip: it plays, with what was recognised in each second, seen, heard and both.
   *  options: labels (names of the run), source (address of the file or null), frames(second) -> address or null,
   *  picked(begin, end): called when seconds are picked; slot: what stands between timeline and scores. */
  class Detail {
    constructor(host, options) {
      this.options = options;
      this.picked = null;
      this.title = el("h2", { tabindex: "-1" });
      this.verdict = el("p", { class: "verdict" });
      this.screen = el("div", { class: "screen" });
      this.tracks = el("div", { class: "tracks" });
      this.seek = el("input", { type: "range", min: 0, step: 0.1, value: 0, class: "seek", "aria-label": "Position in seconds", oninput: () => this.go(Number(this.seek.value)) });
      this.ticks = el("div", { class: "ticks", "aria-hidden": "true" });
      this.legend = el("p", { class: "legend" });
      this.scores = el("div");
      this.notes = el("div");
      host.replaceChildren(el("div", { class: "head" }, this.title, this.verdict), this.screen,
        el("div", { class: "timeline" }, this.tracks, el("div", { class: "axis" }, this.seek, this.ticks)), this.legend, ...(options.slot ? [options.slot] : []), this.scores, this.notes);
      this.observer = new ResizeObserver(() => this.fit());
      this.observer.observe(this.tracks);
    }

    close() {
      this.observer.disconnect();
      cancelAnimationFrame(this.frame);
      if (this.media) { this.media.pause(); this.media.removeAttribute("src"); this.media.load(); }
    }

    /** Show a clip, or what has become of it; the player goes on where it is the same. */
    show(clip) {
      const same = this.clip && this.clip.id === clip.id;
      this.clip = clip;
      this.length = Math.max(clip.both ? clip.both.length / 2 : 0, 1);
      this.seek.max = this.length;
      if (!same) this.play(clip);
      this.draw();
    }

    play(clip) {
      const { source, frames } = this.options, address = source(clip);
      this.media = null;
      this.seek.value = 0;
      const still = () => {
        this.media = null;
        const picture = frames(clip, 0);
        this.still = picture ? el("img", { src: picture, alt: `A frame of ${clip.path}`, class: "still", onerror: (e) => e.target.remove() }) : null;
        this.screen.replaceChildren(...[this.still, address ? el("p", { class: "soft" }, "This browser cannot play the file; the timeline shows its frames.") : null].filter(Boolean));
      };
      if (!address) { still(); return; }
      const media = el(clip.video === false ? "audio" : "video", { src: address, controls: true, preload: "metadata", playsInline: true, "aria-label": clip.path, onerror: still,
        onloadedmetadata: () => { if (this.pending) { media.currentTime = this.pending; this.pending = 0; } } });
      this.media = media;
      this.still = null;
      this.screen.replaceChildren(media);
      const follow = () => {
        if (this.media !== media) return;
        if (document.activeElement !== this.seek || !media.paused) this.seek.value = media.currentTime;
        this.follow(media.currentTime);
        this.frame = requestAnimationFrame(follow);
      };
      follow();
    }

    /** Go to a time; without a player, to its frame. */
    go(seconds) {
      seconds = Math.min(Math.max(seconds, 0), this.length);
      this.seek.value = seconds;
      if (this.media && this.media.readyState) this.media.currentTime = seconds;
      else if (this.media) this.pending = seconds;
      else if (this.still) { const source = this.options.frames(this.clip, Math.min(Math.floor(seconds), this.length - 1)); if (source) this.still.src = source; }
      this.follow(seconds);
    }

    follow(seconds) {
      const place = `${100 * Math.min(seconds / this.length, 1)}%`;
      for (const line of this.tracks.querySelectorAll(".playhead")) line.style.left = place;
      const second = Math.min(Math.floor(seconds), this.length - 1);
      if (second !== this.second) {
        this.second = second;
        for (const button of this.tracks.querySelectorAll(".run")) button.classList.toggle("now", Number(button.dataset.begin) <= second && second < Number(button.dataset.end));
      }
    }

    pick(begin, end) {
      this.picked = [begin, end];
      this.drawPicked();
      if (this.options.picked) this.options.picked(begin, end);
    }

    drawPicked() {
      const [begin, end] = this.picked && this.picked[1] <= this.length ? this.picked : [0, 0];
      for (const node of this.tracks.querySelectorAll(".picked")) {
        node.style.left = `${100 * begin / this.length}%`;
        node.style.width = `${100 * (end - begin) / this.length}%`;
        node.hidden = begin === end;
      }
    }

    draw() {
      const { clip, length } = this, labels = clip.labels || this.options.labels;
      const name = (index) => index < 0 ? "background" : labels[index];
      this.title.textContent = clip.path;
      this.second = null;
      const said = clip.mark && clip.mark.label;
      const rows = [["both", clip.both, "Both"], ["sight", clip.sight, "Sight"], ["sound", clip.sound, "Sound"]].filter((row) => row[1] && row[1].length);
      const mine = clip.mark ? Object.entries(clip.mark.seconds || {}).map(([second, label]) => [label, Number(second), Number(second) + 1, [1]]) : [];
      const drawn = rows.map(([key, flat, title]) => [key, runs(flat, name), title]);
      if (clip.truths) drawn.unshift(["truth", clip.truths, "Truth"]);
      if (mine.length) drawn.push(["mine", mine, "By you"]);
      const shown = [said || clip.label, ...drawn.flatMap(([, found]) => found.map((run) => run[0]))].filter(Boolean);
      const table = paints(shown);
      const main = said || (clip.unknown ? "unknown" : clip.label);
      this.verdict.replaceChildren(...(main ? [dot(table.get(main) || QUIET), ` ${main} `, el("span", { class: "number soft" }, said ? "by you" : clip.unknown ? `best: ${clip.label} ${percent(clip.score / 1000)}` : percent(clip.score / 1000))] : [clip.error || "Not classified yet."]));
      this.verdict.classList.toggle("faded", Boolean(clip.score && clip.score < 300 && !said));
      this.tracks.replaceChildren(...drawn.map(([key, found, title]) => {
        const described = found.slice(0, 50).map((run) => `${run[1]} to ${run[2]} s ${run[0]}`).join(", ");
        const track = el("div", { class: `track ${key}`, role: "group", "aria-label": `${title}: ${described}`, onclick: (event) => {
          const box = track.getBoundingClientRect(), at = length * (event.clientX - box.left) / box.width;
          if (event.detail === 0) return; // by keyboard: the run's own business
          const second = Math.min(Math.max(Math.floor(at), 0), length - 1);
          this.go(second);
          if (event.shiftKey && this.picked) this.pick(Math.min(this.picked[0], second), Math.max(this.picked[1], second + 1)); else this.pick(second, second + 1);
        } });
        track.append(...found.map(([label, begin, end, scores]) => {
          const mean = scores.reduce((a, b) => a + b, 0) / scores.length, paint = table.get(label) || QUIET;
          return el("button", { type: "button", class: "run", "data-begin": begin, "data-end": end, "aria-label": `${title}, ${begin} to ${end} s: ${label}, ${percent(mean)}`, title: `${clock(begin)}–${clock(end)} ${label} ${percent(mean)}`,
            style: { left: `${100 * begin / length}%`, width: `${100 * (end - begin) / length}%` },
            onclick: (event) => { if (event.detail === 0) { this.go(begin); this.pick(begin, end); } } },
            scores.map((score) => el("span", { class: "cell", style: { background: paint[0], opacity: String(0.2 + 0.8 * Math.min(score, 1) ** 0.7) } })), el("span", { class: "run-name" }, label));
        }), el("span", { class: "picked", hidden: true }), el("span", { class: "playhead" }));
        return el("div", { class: "track-row" }, el("span", { class: "track-name" }, title), track);
      }));
      this.legend.replaceChildren(...[...new Set(shown)].slice(0, 12).map((label) => el("span", {}, dot(table.get(label)), ` ${label}`)));
      this.drawScores(name);
      this.notes.replaceChildren(...(clip.warnings || []).map((text) => el("p", { class: "warning" }, text)));
      this.drawPicked();
      this.follow(Number(this.seek.value));
      this.fit();
    }

    drawScores(name) {
      const { clip } = this, best = (clip.best || []).slice(0, this.all ? undefined : 5);
      if (!best.length) { this.scores.replaceChildren(); return; }
      const cell = (value, kind) => el("td", { class: "number" }, value === null ? "–" : [el("span", { class: `meter ${kind}`, "aria-hidden": "true" }, el("span", { style: { width: `${value / 10}%` } })), percent(value / 1000)]);
      const rows = best.map(([index, both, sight, sound]) => el("tr", { class: name(index) === clip.label ? "chosen" : null }, el("th", { scope: "row" }, name(index)), cell(both, "both"), cell(sight, "visual"), cell(sound, "audio")));
      this.scores.replaceChildren(el("table", { class: "scores" }, el("caption", { class: "hidden" }, "Scores by modality"), el("thead", {}, el("tr", {}, ["label", "both", "sight", "sound"].map((head) => el("th", { scope: "col" }, head)))), el("tbody", {}, rows)),
        clip.best.length > 5 ? el("button", { type: "button", class: "quiet", onclick: () => { this.all = !this.all; this.drawScores(name); } }, this.all ? "Fewer labels" : `All ${clip.best.length} labels`) : "",
        clip.weights && clip.sight && clip.sound ? el("p", { class: "soft" }, `Sight counts ${percent(clip.weights[0] / 1000)}, sound ${percent(clip.weights[1] / 1000)}.`) : "");
    }

    /** Names where they fit, and as many ticks as do not collide. */
    fit() {
      const track = this.tracks.querySelector(".track");
      if (!track) return;
      for (const node of this.tracks.querySelectorAll(".run-name")) {
        node.classList.remove("gone");
        node.classList.toggle("gone", node.scrollWidth > node.parentElement.clientWidth - 8);
      }
      const width = track.clientWidth, steps = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400];
      const step = steps.find((s) => width * s / this.length >= 48) || 36000;
      const times = Array.from({ length: Math.floor(this.length / step) + 1 }, (_, index) => index * step);
      this.ticks.replaceChildren(...times.map((time) => el("span", { style: { left: `${100 * time / this.length}%` } }, clock(time))));
    }
  }

  return { el, percent, clock, paints, dot, List, Detail };
})();
