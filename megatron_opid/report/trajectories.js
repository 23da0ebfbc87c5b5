// The trajectory browser: filters, list of episodes, one episode, one agent step with its tokens coloured.

const OUTCOMES = { success: ["✓", "success"], failure: ["✗", "failure"], fault: ["!", "fault"] };

function browseTrajectories(data) {
  const list = document.getElementById("episode-list");
  const filters = ["step", "outcome", "category"].map((key) => [key, document.getElementById(`filter-${key}`)]);
  for (const [key, select] of filters) {
    const values = [...new Set(data.episodes.map((episode) => episode[key]))].sort((a, b) => (a > b ? 1 : -1));
    select.append(make("option", { value: "" }, "all"), ...values.map((value) => make("option", { value }, String(value))));
    select.addEventListener("change", fill);
  }
  moveWithArrows(list, "ArrowUp", "ArrowDown");

  async function open(position) {
    for (const row of list.children) row.setAttribute("aria-current", row.dataset.position === String(position));
    const content = JSON.parse(await unpack(data.packed[position]));
    showEpisode({ ...data.episodes[position], ...content }, data.scale_nats);
  }

  function fill() {
    const wanted = filters.filter(([, select]) => select.value !== "");
    const rows = data.episodes
      .map((episode, position) => ({ episode, position }))
      .filter(({ episode }) => wanted.every(([key, select]) => String(episode[key]) === select.value));
    list.replaceChildren(...rows.map(({ episode, position }) => episodeRow(episode, position, open)));
    document.getElementById("episode-count").textContent = `${rows.length} shown`;
    if (rows.length) open(rows[0].position).catch(showProblem);
    else document.getElementById("episode").replaceChildren(make("p", { className: "hint" }, "No episode matches."));
  }
  fill();
}

function episodeRow(episode, position, open) {
  const steps = `step ${episode.step} · ${episode.num_steps} actions · ${episode.category}`;
  const row = make(
    "button",
    { type: "button", className: "row" },
    badge(episode.outcome),
    make("span", {}, make("b", {}, episode.goal), make("small", {}, steps)),
  );
  row.dataset.position = position;
  row.addEventListener("click", () => open(position).catch(showProblem));
  return row;
}

function badge(outcome) {
  const [sign, words] = OUTCOMES[outcome];
  return make("span", { className: `badge ${outcome}`, title: words, ariaLabel: words, role: "img" }, sign);
}

// arrow keys go to the previous and next button of a group, and press it
function moveWithArrows(group, backKey, forwardKey) {
  group.addEventListener("keydown", (event) => {
    if (event.key !== backKey && event.key !== forwardKey) return;
    const row = document.activeElement;
    const next = event.key === backKey ? row.previousElementSibling : row.nextElementSibling;
    event.preventDefault();
    if (!next || !group.contains(row)) return;
    next.focus();
    next.click();
  });
}

function showEpisode(episode, scale) {
  const steps = make("div", { className: "agent-steps", role: "group", ariaLabel: "Agent steps" });
  const place = make("div", { className: "agent-step" });
  const open = (position) => {
    [...steps.children].forEach((button, other) => button.setAttribute("aria-current", other === position));
    hideTip();
    place.replaceChildren(...agentStep(episode, position, scale));
  };
  episode.steps.forEach((step, position) => {
    const classes = [step.valid ? "" : "invalid", step.step_skill ? "critical" : ""].join(" ");
    const title = `${step.action}${step.valid ? "" : " (invalid)"}${step.step_skill ? " (critical step)" : ""}`;
    const button = make("button", { type: "button", className: classes, title }, String(position));
    button.addEventListener("click", () => open(position));
    steps.append(button);
  });
  moveWithArrows(steps, "ArrowLeft", "ArrowRight");
  const heading = make("h3", {}, badge(episode.outcome), " ", episode.goal);
  const about = facts({
    "Training step": episode.step,
    "Task type": episode.category,
    Score: number(episode.score),
    Group: episode.group,
    Episode: episode.uid,
    Fault: episode.fault,
  });
  const key = "Agent steps; red: invalid action, underlined: critical, has a skill of its own";
  const parts = [heading, about, ...block("Summary by the analyzer", episode.summary)];
  parts.push(make("p", { className: "hint" }, key), steps, place);
  document.getElementById("episode").replaceChildren(...parts);
  if (episode.steps.length) open(0);
}

function agentStep(episode, position, scale) {
  const step = episode.steps[position];
  const about = facts({
    Action: step.action || "(none)",
    Valid: step.valid ? "yes" : "no",
    Reward: number(step.reward),
    Tokens: `${step.num_prompt_tokens} prompt + ${step.num_response_tokens} response`,
    Finish: step.finish_reason,
    Weights: `version ${step.weight_version}`,
  });
  const prompt = step.prompt === null ? observed(step) : block("Prompt", step.prompt);
  return [about, ...prompt, ...(step.scores.length ? scored(step, scale) : unscored(episode, step))];
}

function observed(step) {
  return [...block("Observation", step.observation), ...block("Admissible actions", step.admissible.join("\n"))];
}

function unscored(episode, step) {
  return [
    ...block("Step skill (not scored)", step.step_skill),
    ...block("Episode skill (not scored)", episode.episode_skill),
    ...block("Response", step.response),
  ];
}

function scored(step, scale) {
  return step.scores.flatMap((score) => [
    ...block(score.level === "step" ? "Skill of this step" : "Skill of the episode", score.skill),
    make("h4", {}, "Response, coloured by skill advantage"),
    legend(score, scale),
    tokens(score, scale),
  ]);
}

function legend(score, scale) {
  const deltas = score.tokens.map((_, i) => delta(score, i)).filter((value) => value !== null);
  const sum = deltas.reduce((total, value) => total + value, 0);
  const bar = make("span", { className: "scale", ariaHidden: "true" });
  bar.style.background = `linear-gradient(to right, ${shade(-scale, scale)}, transparent, ${shade(scale, scale)})`;
  const text = `log-prob with skill − without; sum over the response ${signed(sum)} nats`;
  return make("p", { className: "legend" }, `−${number(scale)}`, bar, `+${number(scale)} nats`, make("small", {}, text));
}

function tokens(score, scale) {
  const place = make("pre", { className: "tokens", tabIndex: 0, ariaLabel: "Response tokens; arrow keys read them" });
  score.tokens.forEach((text, i) => {
    // a line break has no area to colour or to point at
    const token = make("span", { className: "token" }, text.replaceAll("\n", "↵\n"));
    token.style.backgroundColor = shade(delta(score, i), scale);
    token.addEventListener("mouseenter", () => showTip(token, score, i));
    token.addEventListener("mouseleave", hideTip);
    place.append(token);
  });
  let current = -1;
  place.addEventListener("keydown", (event) => {
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
    event.preventDefault();
    current = Math.min(place.children.length - 1, Math.max(0, current + (event.key === "ArrowRight" ? 1 : -1)));
    if (place.children.length) showTip(place.children[current], score, current);
  });
  place.addEventListener("blur", hideTip);
  return place;
}

function delta(score, i) {
  return score.old[i] === null || score.teacher[i] === null ? null : score.teacher[i] - score.old[i];
}

// diverging: blue where the skill makes the token likelier, orange where less likely; strongest at ±scale
function shade(value, scale) {
  const strength = Math.min(1, Math.abs(value ?? 0) / scale);
  return faded(style(value > 0 ? "--likelier" : "--unlikelier"), (0.75 * strength).toFixed(3));
}

function showTip(token, score, i) {
  const tip = document.getElementById("token-tip");
  for (const marked of document.querySelectorAll(".token.current")) marked.classList.remove("current");
  token.classList.add("current");
  const rows = {
    token: JSON.stringify(score.tokens[i]),
    "with − without": `${signed(delta(score, i))} nats`,
    "with skill": number(score.teacher[i]),
    without: number(score.old[i]),
    "advantage trained on": signed(score.advantage[i]),
  };
  tip.replaceChildren(facts(rows));
  tip.hidden = false;
  const box = token.getBoundingClientRect();
  const left = Math.min(box.left, document.documentElement.clientWidth - tip.offsetWidth - 8);
  const above = box.top - tip.offsetHeight - 6;
  tip.style.left = `${Math.max(8, left) + scrollX}px`;
  tip.style.top = `${(above > 0 ? above : box.bottom + 6) + scrollY}px`;
}

function hideTip() {
  document.getElementById("token-tip").hidden = true;
  for (const marked of document.querySelectorAll(".token.current")) marked.classList.remove("current");
}

function block(title, text) {
  return text ? [make("h4", {}, title), make("pre", { tabIndex: 0 }, text)] : [];
}

function facts(entries) {
  const shown = Object.entries(entries).filter(([, value]) => value !== null && value !== undefined);
  const pairs = shown.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, String(value))));
  return make("dl", { className: "facts" }, ...pairs);
}

function number(value) {
  return value === null ? "not finite" : String(Number(value.toPrecision(3)));
}

function signed(value) {
  return value === null ? "not finite" : `${value < 0 ? "−" : "+"}${number(Math.abs(value))}`;
}
