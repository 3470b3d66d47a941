// The tasks of a DAG run over time: a bar for each, and before it the gap since the tasks that it waited for.

import { drawn } from "./dom.js";
import { seconds } from "./words.js";

const ROW = 18;
const HEAD = 20;
const TICKS = 8;
const STEPS = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 43200, 86400];

export function timeline(run, now, width) {
  const names = Math.min(260, width / 3);
  const first = Math.min(run.start, ...run.tasks.map((task) => task.start));
  const last = Math.max(run.end ?? now, first + 0.1, ...run.tasks.map((task) => task.end ?? now));
  const x = (moment) => names + ((moment - first) / (last - first)) * (width - names - 50);
  const height = HEAD + ROW * run.tasks.length;
  const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img" });
  svg.append(drawn("title", {}, `Timeline of ${run.dag_id} ${run.run_id}`), ...axis(first, last, x, height));
  run.tasks.forEach((task, row) => svg.append(...line(task, HEAD + ROW * row, now, names, x)));
  return svg;
}

function nameOf(task) {
  return task.map_index < 0 ? task.task_id : `${task.task_id}[${task.map_index}]`;
}

function axis(first, last, x, height) {
  const step = STEPS.find((one) => (last - first) / one <= TICKS) ?? (last - first) / TICKS;
  const made = [];
  for (let at = 0; at <= last - first; at += step) {
    const place = x(first + at);
    made.push(drawn("line", { class: "grid", x1: place, x2: place, y1: HEAD - 5, y2: height }));
    made.push(drawn("text", { class: "tick", x: place, y: HEAD - 8 }, at ? seconds(at) : "0"));
  }
  return made;
}

function line(task, top, now, names, x) {
  const end = task.end ?? now;
  const made = [drawn("text", { x: 0, y: top + 13 }, shortened(nameOf(task), names / 7))];
  if (task.gap_s !== null) {
    const from = x(task.start - task.gap_s);
    const gap = drawn("rect", { class: "gap", x: from, y: top + 7, width: x(task.start) - from, height: 4 });
    gap.append(drawn("title", {}, `${seconds(task.gap_s)} between the tasks before ${nameOf(task)} and its start`));
    made.push(gap);
  }
  const bar = drawn("rect", {
    class: `bar ${task.state}`, x: x(task.start), y: top + 3, width: Math.max(2, x(end) - x(task.start)), height: 12, rx: 2,
  });
  bar.append(drawn("title", {}, `${nameOf(task)}, try ${task.try_number}: ${task.state}, ${seconds(end - task.start)}`));
  return [...made, bar];
}

function shortened(text, length) {
  return text.length <= length ? text : `${text.slice(0, length - 1)}…`;
}
