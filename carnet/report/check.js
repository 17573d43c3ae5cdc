// Filter what was found by kind and class, and turn ticked images into an ignore list. Nothing leaves this page.
const $ = id => document.getElementById(id);
const ticks = [...document.querySelectorAll(".tick")];
const namesOf = tick => [JSON.parse(tick.dataset.names || tick.dataset.name)].flat();
// An image with a box of its own is listed by that box, also where another box stands for many.
const own = new Map(ticks.filter(tick => tick.dataset.name).map(tick => [namesOf(tick)[0], tick]));
const isLeftOut = (name, tick) => (own.get(name) || tick).checked;
const ticked = () => [...new Set(ticks.filter(tick => tick.checked)
  .flatMap(tick => namesOf(tick).filter(name => isLeftOut(name, tick))))].sort();

const count = () => { $("number").textContent = ticked().length.toLocaleString("en"); };

const filter = () => {
  let shown = 0;
  for (const section of document.querySelectorAll("[data-kind]")) {
    const cases = [...section.querySelectorAll("[data-classes]")];
    for (const one of cases) {
      one.hidden = !!$("class").value && !one.dataset.classes.split(" ").includes($("class").value);
      shown += !one.hidden && (!$("kind").value || section.dataset.kind === $("kind").value);
    }
    const isOther = $("kind").value && section.dataset.kind !== $("kind").value;
    section.hidden = !!isOther || (!!$("class").value && cases.every(one => one.hidden));
  }
  $("shown").textContent = shown.toLocaleString("en") + (shown === 1 ? " case shown" : " cases shown");
};

for (const tick of ticks) tick.onchange = () => {
  // One image may have been found several times.
  if (tick.dataset.name) for (const other of ticks) if (other.dataset.name === tick.dataset.name) other.checked = tick.checked;
  count();
};

$("download").onclick = () => {
  const text = "# Images to leave out: carnet train DATA --ignore ignore.txt\n" + ticked().map(name => (/^[# ]/.test(name) ? "./" : "") + name + "\n").join("");
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], {type: "text/plain"}));
  link.download = "ignore.txt";
  link.click();
  URL.revokeObjectURL(link.href);
};

$("basket").hidden = !ticks.length;
count();
if ($("filters")) {
  $("filters").hidden = false;
  $("filters").onsubmit = () => false;
  $("filters").onchange = filter;
  filter();
}
