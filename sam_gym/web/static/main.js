// The page: tabs, theme, and which tab gets the keys.

import { get, say, store, tell } from "./api.js";
import { annotate } from "./annotate.js";
import { play } from "./play.js";
import { watch } from "./watch.js";
import { rate } from "./rate.js";

const root = document.documentElement;
if (store.get("theme")) root.dataset.theme = store.get("theme");
document.getElementById("theme").addEventListener("click", () => {
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  store.set("theme", root.dataset.theme);
});

const tabs = [...document.querySelectorAll("[role=tab]")];
const makers = { annotate, play, watch, rate }, made = {};
let shown = null, config;

function choose(name) {
  shown = name;
  for (const tab of tabs) {
    const here = tab.dataset.tab === name;
    tab.setAttribute("aria-selected", here);
    tab.tabIndex = here ? 0 : -1;
    document.getElementById(tab.dataset.tab).hidden = !here;
  }
  made[name] ??= makers[name](document.getElementById(name), config);
  made[name].show?.();
  store.set("tab", name);
}

for (const tab of tabs) {
  tab.addEventListener("click", event => {
    choose(tab.dataset.tab);
    if (event.detail) document.querySelector(`#${tab.dataset.tab} canvas`).focus({ preventScroll: true });  // the keys are its
  });
  tab.addEventListener("keydown", event => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key], there = tabs.filter(one => !one.hidden);
    if (!step) return;
    event.preventDefault(); event.stopPropagation();
    const next = there[(there.indexOf(tab) + step + there.length) % there.length];
    next.focus();
    choose(next.dataset.tab);
  });
}

addEventListener("pointerdown", () => { root.dataset.input = "pointer"; }, true);

// A tab says what its keys do; fields and buttons keep their own.
addEventListener("keydown", event => {
  root.dataset.input = "keys";
  if (event.ctrlKey || event.metaKey || event.altKey || !made[shown]?.keys) return;
  const { tagName, type } = event.target, plain = event.key === " " || event.key === "Enter";
  if (tagName === "SELECT" || (tagName === "INPUT" && !["checkbox", "radio"].includes(type))) return;
  if (plain && ["BUTTON", "SUMMARY", "INPUT"].includes(tagName)) return;
  if (made[shown].keys(event.key, event.shiftKey)) event.preventDefault();
});

try {
  config = await get("/config");
  for (const select of document.querySelectorAll(".environment")) {
    const rating = select.closest("#rate");
    const ids = config.env_ids.filter(id => id.startsWith("SamPrefer-") || !rating);
    select.append(...ids.map(id => new Option(id, id)));
    select.value = rating ? ids.find(id => id.split("-")[1] === config.env_id.split("-")[1]) || ids[0] : config.env_id;
  }
  document.getElementById("tab-annotate").hidden = !config.annotates;
  document.getElementById("tab-rate").hidden = !document.querySelector("#rate .environment").options.length;
  const wanted = tabs.find(tab => tab.dataset.tab === store.get("tab") && !tab.hidden);
  choose(config.annotates ? "annotate" : wanted ? wanted.dataset.tab : "play");
  say("sam_gym is ready");
} catch (error) {
  tell(error.message);
}
