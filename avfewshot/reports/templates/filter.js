"use strict";
/* Of a run's examples, those that are looked for: mistakes, a class, a name. */
(() => {
  const bar = document.getElementById("example-filter");
  if (!bar) return;
  const [kind, text, shown] = ["outcome", "example-search", "examples-shown"].map((id) => document.getElementById(id));
  const clips = [...document.querySelectorAll("article[data-outcome]")];
  const apply = () => {
    const wanted = text.value.trim().toLowerCase();
    for (const clip of clips) clip.hidden = !(clip.dataset.outcome.includes(kind.value) && clip.textContent.toLowerCase().includes(wanted));
    for (const group of document.querySelectorAll(".group")) group.hidden = !group.querySelector("article:not([hidden])");
    shown.textContent = `${clips.filter((clip) => !clip.hidden).length} of ${clips.length} examples`;
  };
  kind.addEventListener("change", apply);
  text.addEventListener("input", apply);
  bar.hidden = false;
  apply();
})();
