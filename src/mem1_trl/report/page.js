"use strict";
// The trajectory browser. All text of agents and environments is set as textContent, so that it is never interpreted as HTML.
(() => {
  const byId = (id) => document.getElementById(id);
  if (!byId("episodes-index")) return;
  const files = JSON.parse(byId("episodes-index").textContent);
  const parsed = new Map(); // a file is parsed when it is first shown
  const episodesOf = (file) => {
    if (!parsed.has(file)) parsed.set(file, JSON.parse(byId("episodes-" + file).textContent));
    return parsed.get(file);
  };
  const KINDS = { error: "failed with an error", wrong: "wrong", partly: "partly right", right: "right", unscored: "not scored" };
  const PARTS = ["prompt", "state", "action", "observation", "other"];
  const shown = { file: 0, kind: "all", index: null };

  const element = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value === null || value === undefined || value === false) continue;
      if (name === "text") node.textContent = value;
      else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else node.setAttribute(name, value);
    }
    node.append(...children.filter((child) => child !== null && child !== undefined));
    return node;
  };
  const sum = (numbers) => numbers.reduce((total, number) => total + number, 0);
  const count = (number, word) => `${number.toLocaleString("en")} ${word}${number === 1 ? "" : "s"}`;
  const objectivesLabel = (n) => (n === null ? "any" : String(n));

  // Right answers are marked where they occur as whole words
  const goldPattern = (episode) => {
    const golds = [...new Set(episode.objectives.flatMap((o) => o.gold))].filter((gold) => gold.trim()).slice(0, 200);
    if (!golds.length) return null;
    const escaped = golds.sort((a, b) => b.length - a.length).map((gold) => gold.replace(/[.*+?^${}()|[\]\\/]/g, "\\$&"));
    try {
      return new RegExp(`(?<![\\p{L}\\p{N}])(?:${escaped.join("|")})(?![\\p{L}\\p{N}])`, "giu");
    } catch { // an older browser, which cannot look behind
      return new RegExp(escaped.join("|"), "giu");
    }
  };
  const marked = (text, pattern) => {
    if (!pattern) return [text];
    const pieces = [];
    let end = 0;
    for (const match of text.matchAll(pattern)) {
      if (!match[0]) continue;
      pieces.push(text.slice(end, match.index), element("mark", { text: match[0] }));
      end = match.index + match[0].length;
    }
    return [...pieces, text.slice(end)];
  };
  const block = (className, ...children) => element("div", { class: `text ${className}`, tabindex: "0" }, ...children);
  const writtenBlock = (turn, pattern, className) =>
    block(className, ...turn.written.map(([kind, text]) => element("span", { class: kind }, ...marked(text, pattern))));
  const observedBlock = (turn, pattern, className) => block(className, ...marked(turn.observation.trim(), pattern));

  const total = (turn) => sum(PARTS.map((part) => turn.context[part])) + sum(turn.new);
  const bar = (turn, longest) => {
    const node = element("div", { class: "bar", "aria-hidden": "true" });
    const widths = { ...turn.context, generated: sum(turn.new), dropped: turn.droppedTokens };
    for (const part of [...PARTS, "generated", "dropped"]) {
      if (!widths[part]) continue;
      const piece = element("span", { class: part, title: `${part}: ${count(widths[part], "token")}` });
      piece.style.width = `${(100 * widths[part]) / longest}%`;
      node.append(piece);
    }
    return node;
  };
  const turnList = (turns) => {
    const numbers = turns.map((i) => i + 1);
    if (numbers.length > 2 && numbers.at(-1) - numbers[0] === numbers.length - 1) return `turns ${numbers[0]} to ${numbers.at(-1)}`;
    if (numbers.length === 1) return `turn ${numbers[0]}`;
    return `turns ${numbers.slice(0, -1).join(", ")} and ${numbers.at(-1)}`;
  };
  // Older turns are drawn when they are opened: a full history shows every turn in every later one
  const folded = (summary, turns, which, pattern, gone) => {
    const node = element("details", {}, element("summary", { class: "label", text: summary }));
    node.addEventListener("toggle", () => {
      if (!node.open || node.childElementCount > 1) return;
      for (const i of which) {
        node.append(element("div", { class: "label", text: `turn ${i + 1} wrote` }), writtenBlock(turns[i], pattern, gone ? "generated gone" : "generated"));
        if (turns[i].observation !== null)
          node.append(element("div", { class: "label", text: "and observed" }), observedBlock(turns[i], pattern, gone ? "observed gone" : "observed"));
      }
    });
    return node;
  };

  const turnCard = (episode, number, longest, pattern) => {
    const turn = episode.turns[number];
    const { prompt, state, action, observation, other } = turn.context;
    const reads = sum(PARTS.map((part) => turn.context[part]));
    const kept = state + action + observation;
    const card = element("article", { class: "card", id: `turn-${number + 1}`, tabindex: "-1" });
    card.append(
      element(
        "div", { class: "turn-head" },
        element("h4", { text: `Turn ${number + 1}` }),
        element("span", { class: "soft", text: `reads ${count(reads, "token")}, writes ${sum(turn.new).toLocaleString("en")}` }),
      ),
      bar(turn, longest),
    );
    if (number > 0) {
      const parts = `state ${state}, action ${action}, observation ${observation}`;
      if (turn.kept.length)
        card.append(folded(`Kept from ${turnList(turn.kept)}: ${count(kept, "token")} (${parts})`, episode.turns, turn.kept, pattern, false));
      if (other)
        card.append(element("div", { class: "label", text: `Put into the context from elsewhere: ${count(other, "token")}` }));
      if (turn.dropped.length)
        card.append(folded(`Dropped, ${turnList(turn.dropped)}: ${count(turn.droppedTokens, "token")}`, episode.turns, turn.dropped, pattern, true));
      else card.append(element("div", { class: "label", text: "Nothing dropped so far" }));
    } else {
      card.append(element("div", { class: "label", text: `Reads the task prompt only (${count(prompt, "token")})` }));
    }
    card.append(
      element("div", { class: "label", text: `Generated: ${count(sum(turn.new), "token")} (state ${turn.new[0]}, action and rest ${turn.new[1]})` }),
      writtenBlock(turn, pattern, "generated"),
    );
    if (turn.worth) {
      const nats = (value) => `${value.toFixed(2)} nats`;
      const { next_turn, next_action, answer } = turn.worth;
      const acted = next_action === null ? "" : `, of its action ${nats(next_action)}`;
      const right = answer === null ? "" : `, of the right answer ${nats(answer)}`;
      card.append(
        element("div", { class: "label", text: `Its state carries ${nats(next_turn)} of the next turn${acted}${right}` }),
      );
    }
    if (turn.observation !== null)
      card.append(
        element("div", { class: "label", text: `Observation: ${count(turn.observationTokens, "token")}` }),
        observedBlock(turn, pattern, "observed"),
      );
    return card;
  };

  const memoryStrip = (objective, turns) => {
    const strip = element("div", { class: "memory", "aria-hidden": "true" });
    const words = [];
    for (let turn = 1; turn <= turns; turn++) {
      let kind = "";
      if (turn === objective.seen) kind = "seen";
      else if (objective.seen !== null && turn > objective.seen) kind = objective.kept[turn - objective.seen - 1] ? "kept" : "lost";
      if (kind) words.push(`turn ${turn} ${kind}`);
      strip.append(element("i", { class: kind, title: `turn ${turn}${kind ? ": " + kind : ""}` }));
    }
    return element("td", { class: "words" }, strip, element("span", { class: "hidden", text: words.join(", ") || "never seen" }));
  };
  const objectivesTable = (episode) => {
    const body = element("tbody");
    episode.objectives.forEach((objective, i) => {
      const right = objective.outcome === "correct";
      body.append(
        element(
          "tr", {},
          element("th", { scope: "row", class: "words", text: `${i + 1}. ${objective.question ?? ""}` }),
          element("td", { class: "words", text: objective.gold.join(" / ") }),
          element("td", { class: "words", text: objective.given ?? "none" }),
          element("td", { class: `words ${right ? "right" : "wrong"}`, text: (objective.outcome ?? "").replaceAll("_", " ") }),
          memoryStrip(objective, episode.turns.length),
        ),
      );
    });
    const head = ["Objective", "Right answer", "Given", "Outcome", "In memory, turn by turn"];
    return element(
      "div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Objectives of this episode" },
      element(
        "table", {},
        element("thead", {}, element("tr", {}, ...head.map((text) => element("th", { scope: "col", class: "words", text })))),
        body,
      ),
    );
  };

  const drawEpisode = (episode) => {
    const place = byId("episode");
    place.replaceChildren();
    if (!episode) {
      place.append(element("p", { text: "No episode of this kind is embedded in this page." }));
      return;
    }
    const pattern = goldPattern(episode);
    const fact = (name, value, className) =>
      value === null || value === undefined ? [] : [element("dt", { text: name }), element("dd", { text: value, class: className })];
    const objectives = episode.objectives.length;
    const score = episode.scores.exact_match;
    const verdict = KINDS[episode.kind] + (score !== undefined && objectives ? `: ${score} of ${objectives}` : "");
    place.append(
      element(
        "div", { class: "card" },
        element(
          "dl", { class: "facts" },
          ...fact("Outcome", verdict, episode.kind === "right" ? "right" : episode.kind === "unscored" ? null : "wrong"),
          ...fact("Reward", episode.scores.reward?.toLocaleString("en")),
          ...fact("Answer", episode.turns.length ? (episode.answer ?? "none") : null),
          ...fact("Ended by", episode.stop === null ? null : episode.stop.replaceAll("_", " ")),
          ...fact("Error", episode.error),
        ),
        element(
          "details", {},
          element("summary", { class: "label", text: "Task prompt, in the context of every turn" + (episode.turns.length ? ` (${count(episode.turns[0].context.prompt, "token")})` : "") }),
          block("", episode.prompt.trim()),
        ),
      ),
    );
    if (objectives)
      place.append(
        objectivesTable(episode),
        element("p", { class: "note", text: "In memory: green, an observation showed the answer; blue, it was still in memory; dashed, it was lost." }),
      );
    if (!episode.turns.length) return;
    const longest = Math.max(...episode.turns.map((turn) => total(turn) + turn.droppedTokens));
    const overview = element("div", { class: "overview" });
    episode.turns.forEach((turn, i) => {
      const link = element("a", { href: `#turn-${i + 1}`, text: `turn ${i + 1}` });
      link.addEventListener("click", (event) => {
        event.preventDefault(); // the hash names the episode
        const card = byId(`turn-${i + 1}`);
        card.scrollIntoView({ block: "start" });
        card.focus({ preventScroll: true });
      });
      overview.append(link, bar(turn, longest), element("span", { text: total(turn).toLocaleString("en") }));
    });
    const used = [...PARTS, "generated", "dropped"].filter((part) =>
      episode.turns.some((turn) => (part === "generated" ? true : part === "dropped" ? turn.droppedTokens : turn.context[part])),
    );
    place.append(
      element("h3", { text: "Tokens in context, turn by turn" }),
      element("ul", { class: "key" }, ...used.map((part) => element("li", {}, element("i", { class: part }), part === "dropped" ? "dropped for good" : part))),
      element("div", { class: "card" }, overview),
      ...episode.turns.map((_, i) => turnCard(episode, i, longest, pattern)),
    );
  };

  const fill = (select, options, value) => {
    select.replaceChildren(...options.map(([key, text]) => element("option", { value: key, text })));
    select.value = String(value);
    select.disabled = options.length < 2;
  };
  const matching = () => episodesOf(shown.file).filter((e) => shown.kind === "all" || e.kind === shown.kind);
  const draw = (remember = true) => {
    const file = files[shown.file];
    const all = episodesOf(shown.file);
    fill(byId("pick-agent"), [...new Set(files.map((f) => f.agent))].map((agent) => [agent, agent]), file.agent);
    const numbers = files.map((f, i) => [f, i]).filter(([f]) => f.agent === file.agent);
    fill(byId("pick-objectives"), numbers.map(([f, i]) => [i, objectivesLabel(f.objectives)]), shown.file);
    const kinds = Object.entries(file.kinds).map(([kind, n]) => [kind, `${KINDS[kind]} (${all.filter((e) => e.kind === kind).length} of ${n})`]);
    if (shown.kind !== "all" && !(shown.kind in file.kinds)) shown.kind = "all";
    fill(byId("pick-kind"), [["all", `all (${all.length} of ${file.total})`], ...kinds], shown.kind);
    const list = matching();
    if (!list.some((episode) => episode.index === shown.index)) shown.index = list.length ? list[0].index : null;
    fill(byId("pick-episode"), list.map((e) => [e.index, `${e.index} · ${KINDS[e.kind]} · ${e.title.replace(/\s+/g, " ").slice(0, 120)}`]), shown.index);
    const place = list.findIndex((episode) => episode.index === shown.index);
    byId("previous").disabled = place <= 0;
    byId("next").disabled = place < 0 || place >= list.length - 1;
    byId("episodes-note").textContent =
      all.length < file.total ? `Showing ${all.length} of ${file.total} episodes; all of them are in ${file.source}.` : `All ${file.total} episodes.`;
    drawEpisode(list[place]);
    if (remember) history.replaceState(null, "", `#episode=${shown.file}.${shown.index}`);
  };
  const step = (by) => {
    const list = matching();
    const next = list[list.findIndex((episode) => episode.index === shown.index) + by];
    if (next) {
      shown.index = next.index;
      draw();
    }
  };
  byId("pick-agent").addEventListener("change", (event) => {
    const same = files.findIndex((f) => f.agent === event.target.value && f.objectives === files[shown.file].objectives);
    shown.file = same >= 0 ? same : files.findIndex((f) => f.agent === event.target.value);
    draw();
  });
  byId("pick-objectives").addEventListener("change", (event) => { shown.file = Number(event.target.value); draw(); });
  byId("pick-kind").addEventListener("change", (event) => { shown.kind = event.target.value; draw(); });
  byId("pick-episode").addEventListener("change", (event) => { shown.index = Number(event.target.value); draw(); });
  byId("previous").addEventListener("click", () => step(-1));
  byId("next").addEventListener("click", () => step(1));
  byId("unfold").addEventListener("click", () => {
    const all = [...byId("episode").querySelectorAll("details")];
    const open = all.some((node) => !node.open);
    for (const node of all) node.open = open;
  });
  byId("episodes-controls").hidden = false;
  const linked = /^#episode=(\d+)\.(\d+)$/.exec(location.hash);
  if (linked && Number(linked[1]) < files.length) {
    shown.file = Number(linked[1]);
    shown.index = Number(linked[2]);
  }
  draw(false);
  if (linked) byId("episodes").scrollIntoView();
})();
