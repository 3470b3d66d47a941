// The newest DAG runs: how long their gaps were, and a timeline of each.

import { element, keep, say } from "./dom.js";
import { timeline } from "./timeline.js";
import { seconds } from "./words.js";

export function showRuns(place, data) {
  const first = place.childElementCount === 0;
  keep(place, data.runs, (run) => `${run.dag_id}\n${run.run_id}`, makeRun, (block, run) => fillRun(block, run, data.now));
  if (first && place.firstElementChild) place.firstElementChild.open = true;
}

function makeRun() {
  const summary = element("summary", {},
    element("span"), element("span", { className: "faint" }), element("span"), element("span"), element("span"));
  const made = element("details", {}, summary, element("div"));
  made.addEventListener("toggle", () => draw(made));
  return made;
}

function fillRun(block, run, now) {
  const [dag, id, state, length, gaps] = block.firstElementChild.children;
  say(dag, run.dag_id);
  say(id, run.run_id);
  say(state, run.state);
  state.className = `state ${run.state}`;
  say(length, seconds((run.end ?? now) - run.start));
  say(gaps, run.gaps === null ? "" :
    `${run.gaps.count} gap${run.gaps.count === 1 ? "" : "s"}: median ${seconds(run.gaps.median_s)}, ` +
    `longest ${seconds(run.gaps.longest_s)}`);
  block.shown = { run, now };
  draw(block);
}

// A closed one is drawn when it is opened; one that has ended and looks as before is left alone.
function draw(block) {
  const place = block.lastElementChild;
  const { run, now } = block.shown;
  const width = place.clientWidth;
  const look = JSON.stringify([width, run.end === null ? now : null, run]);
  if (!block.open || width === 0 || place.look === look) return;
  place.look = look;
  place.replaceChildren(timeline(run, now, width));
}
