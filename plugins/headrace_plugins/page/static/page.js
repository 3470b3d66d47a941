// Asks for the data every two seconds while somebody can see the page, and shows it.

import { showDaemons } from "./daemons.js";
import { say } from "./dom.js";
import { showRuns } from "./runs.js";
import { showStore } from "./store.js";
import { followTheme } from "./theme.js";
import { clock } from "./words.js";

const EVERY_MS = 2000;
const AFTER_TROUBLE_MS = 10000;
const PATIENCE_MS = 15000;

const byId = (id) => document.getElementById(id);
let timer = 0;
let asking = false;

async function refresh() {
  if (asking || document.hidden) return;
  asking = true;
  clearTimeout(timer);
  const trouble = await attempt();
  asking = false;
  byId("trouble").hidden = trouble === "";
  say(byId("trouble"), trouble);
  timer = setTimeout(refresh, trouble ? AFTER_TROUBLE_MS : EVERY_MS);
}

// Returns what is wrong, in words; nothing is.
async function attempt() {
  try {
    const reply = await fetch("data", { signal: AbortSignal.timeout(PATIENCE_MS) });
    if (reply.status === 401 || reply.status === 403) {
      document.querySelector("main").hidden = true;
      return reply.status === 401 ? "Your session is over: log in again." : "You may not see this page.";
    }
    if (!reply.ok) return `The API server answered ${reply.status}. What is shown may be out of date.`;
    show(await reply.json());
    return "";
  } catch (error) {
    return `The API server does not answer (${error.message}). What is shown may be out of date.`;
  }
}

function show(data) {
  document.querySelector("main").hidden = false;
  say(byId("as-of"), `As of ${clock(data.now)}`);
  showDaemons(byId("daemons"), data);
  showStore(data.store);
  byId("no-runs").hidden = data.runs.length > 0;
  showRuns(byId("runs"), data);
}

followTheme();
document.addEventListener("visibilitychange", refresh);
refresh();
