(function () {
  "use strict";
  var bar = document.getElementById("filter");
  var choice = document.getElementById("label");
  var shown = document.getElementById("shown");
  if (!bar || !choice || !shown) { return; }
  var clips = Array.prototype.slice.call(document.querySelectorAll("article.clip"));
  function apply() {
    var wanted = choice.value;
    var count = 0;
    clips.forEach(function (clip) {
      var fits = wanted === "" || clip.getAttribute("data-label") === wanted;
      clip.hidden = !fits;
      if (fits) { count += 1; }
    });
    shown.textContent = count + " of " + clips.length + " clips shown";
  }
  choice.addEventListener("change", apply);
  bar.hidden = false;
  apply();
})();
