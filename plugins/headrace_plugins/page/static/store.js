// The store of XComs, and what it holds for each DAG run.

import { figures, rows, say } from "./dom.js";
import { bytes } from "./words.js";

export function showStore(store) {
  say(document.getElementById("store-state"), aboutStore(store));
  figures(document.getElementById("store-figures"), store?.state === "running" ? [
    ["values", String(store.objects)],
    ["in memory", `${bytes(store.memory_bytes)} of ${bytes(store.budget_bytes)}`],
    ["in files", bytes(store.spilled_bytes)],
    ["copies still to be made", String(store.undurable)],
    ["copies that failed", String(store.failed)],
  ] : []);
  rows(document.getElementById("store-runs"), store?.runs ?? [], (run) => `${run.dag_id}\n${run.run_id}`, (run) => [
    run.dag_id, run.run_id, String(run.objects), bytes(run.memory_bytes), bytes(run.file_bytes),
    bytes(run.copied_bytes), String(run.not_copied), String(run.readers),
  ]);
}

function aboutStore(store) {
  switch (store?.state) {
    case "running": return store.failed ? "“airflow headrace store” says why copies failed." : "";
    case "silent": return "The store is there, but does not answer.";
    case "foreign": return "The store belongs to another user than the API server's: it cannot be asked.";
    case "absent": return "The store is not at work on this host: the daemon, or the first task with a value for it, starts it.";
    default: return "Not in use: [core] xcom_backend is another than headrace_airflow.HeadraceXCom.";
  }
}
