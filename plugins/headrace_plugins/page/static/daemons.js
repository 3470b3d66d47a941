// The node's daemons: figures, tasks, and the processes that run them.

import { element, figures, keep, rows, say } from "./dom.js";
import { bytes, clock, seconds } from "./words.js";

const HIDDEN = "(of a DAG that you may not read)";
const NOT_CONFIGURED = { team: null, state: "unused" };

export function showDaemons(place, data) {
  const daemons = data.daemons.length ? data.daemons : [NOT_CONFIGURED];
  keep(place, daemons, (daemon) => daemon.team ?? "", makeDaemon, (block, daemon) => fillDaemon(block, daemon, data));
}

function makeDaemon() {
  const table = (className, ...heads) =>
    element("table", { className },
      element("thead", {}, element("tr", {}, ...heads.map((head) => element("th", {}, head)))), element("tbody"));
  return element("div", {},
    element("h2"), element("p", { className: "note" }), element("dl"),
    table("tasks", "task", "state", "since", "cpus", "memory declared", "process", "waits for"),
    element("h3", {}, "Workers"),
    table("workers", "process", "kind", "what it does"));
}

function fillDaemon(block, daemon, data) {
  const [title, note, list, tasks, heading, workers] = block.children;
  say(title, daemon.team === null ? "Node" : `Node, team ${daemon.team}`);
  say(note, aboutDaemon(daemon, data));
  const there = daemon.state === "running";
  list.hidden = heading.hidden = !there;
  figures(list, there ? daemonFigures(daemon, data.now) : []);
  rows(tasks, there ? daemon.tasks : [], (task) => task.id, (task) => taskTexts(task, data.now));
  rows(workers, there ? processesOf(daemon) : [], ([pid]) => pid, (texts) => texts);
}

function aboutDaemon(daemon, data) {
  switch (daemon.state) {
    case "running":
      return daemon.drained ? "Drained: no further task starts. “airflow headrace resume” ends that." : "";
    case "unused":
      return "No Headrace executor is configured here: set AIRFLOW__CORE__EXECUTOR=headrace_airflow.HeadraceExecutor " +
        "for the scheduler and for the API server.";
    case "silent":
      return `The Headrace daemon on ${data.host} is there, but does not answer.`;
    case "foreign":
      return `The Headrace daemon on ${data.host} belongs to another user than the API server's: it cannot be asked.`;
    default:
      return `No Headrace daemon runs on ${data.host}, where the API server is.\n` +
        "The scheduler starts it on its own host: “airflow scheduler”, with this deployment's AIRFLOW_HOME and database.";
  }
}

function daemonFigures(daemon, now) {
  const running = daemon.tasks.filter((task) => task.state !== "waiting");
  const { cpus, memory_bytes: most, tasks } = daemon.limits;
  const total = (field) => running.reduce((sum, task) => sum + task[field], 0);
  const { total_bytes: all, free_bytes: free } = daemon.memory;
  return [
    ["tasks running", `${running.length} of ${tasks}`],
    ["tasks waiting", String(daemon.tasks.length - running.length)],
    ["cpus in use", `${total("cpus").toFixed(1)} of ${cpus}`],
    ["memory in use", `${bytes(all - free)} of ${bytes(all)}`],
    ["memory declared by tasks", `${bytes(total("memory_bytes"))} of ${bytes(most)}`],
    ["schedulers", String(daemon.schedulers)],
    ["daemon", `process ${daemon.pid}, up ${seconds(now - daemon.since)}`],
  ];
}

function taskTexts(task, now) {
  const since = task.started ?? task.since;
  return [
    task.name ?? HIDDEN,
    task.state,
    `${clock(since)}, ${seconds(now - since)} ago`,
    task.cpus.toFixed(1),
    task.memory_bytes ? bytes(task.memory_bytes) : "",
    task.pid ? String(task.pid) : "",
    task.waits_for,
  ];
}

function processesOf(daemon) {
  const names = new Map(daemon.tasks.map((task) => [task.id, task.name ?? HIDDEN]));
  const supervisors = daemon.supervisors.map(({ pid, task }) =>
    [String(pid), "supervisor", task === null ? "idle" : names.get(task) ?? "a task that is ending"]);
  return [...supervisors, ...daemon.zygotes.map((zygote) => [String(zygote.pid), "zygote", zygoteText(zygote)])];
}

function zygoteText(zygote) {
  const file = zygote.file ?? HIDDEN;
  switch (zygote.state) {
    case "bare": return "Airflow, without a DAG file";
    case "parsing": return `parses ${file}`;
    case "unfit": return `${file} is parsed by each task: it cannot be held. ${zygote.unfit}`;
    default: return `holds ${file}`;
  }
}
