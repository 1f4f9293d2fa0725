"use strict";
// Everything here is an addition: without scripts the page shows all but reading values and numbers per token. Texts of
// runs are only ever set as textContent.
(() => {
  const one = (selector, root = document) => root.querySelector(selector);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const read = id => { const data = document.getElementById(id); return data ? JSON.parse(data.textContent) : []; };
  const make = (name, text = "", kind = "") => {
    const element = document.createElement(name);
    element.textContent = text;
    if (kind) element.className = kind;
    return element;
  };
  const short = value => Math.abs(value) >= 1e6 || (value && Math.abs(value) < 1e-4)
    ? value.toExponential(1) : String(Number(value.toPrecision(4)));
  all("[data-script]").forEach(element => { element.hidden = false; });

  // Light and dark: the system's choice until somebody presses the button.
  const root = document.documentElement;
  const isDark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  const turn = () => { root.dataset.theme = isDark() ? "light" : "dark"; };
  const help = one("#help");
  one("#theme").addEventListener("click", turn);
  one("#keys").addEventListener("click", () => help.showModal());

  // The interval of an evaluation: its place stands in class names, for styles inside texts are nobody's but ours.
  all(".whisker").forEach(mark => {
    const [from, to] = ["at", "to"].map(name => Number([...mark.classList].find(each => each.startsWith(name)).slice(2)));
    mark.style.left = `${Math.max(0, from) * 2}px`;
    mark.style.width = `${Math.max(2, (Math.min(50, to) - Math.max(0, from)) * 2)}px`;
  });

  // Charts: reading values by pointer and arrow keys, and other smoothing.
  const LEFT = 46, RIGHT = 352, TOP = 8, BOTTOM = 140;
  const charts = read("chart-data");
  const across = (frame, step) => LEFT + (step - frame[0]) / (frame[1] - frame[0]) * (RIGHT - LEFT);
  const down = (frame, value) => BOTTOM - Math.min(1, Math.max(0, (value - frame[2]) / (frame[3] - frame[2]))) * (BOTTOM - TOP);
  const smoothed = (values, span) => {
    const keep = 1 - 2 / (Math.max(1, span) + 1);
    let total = 0, weight = 0;
    return values.map(value => { total = keep * total + value; weight = keep * weight + 1; return total / weight; });
  };
  const nearest = (steps, wanted) => {
    let best = 0;
    steps.forEach((step, place) => { if (Math.abs(step - wanted) < Math.abs(steps[best] - wanted)) best = place; });
    return best;
  };
  const show = (figure, chart, step) => {
    const places = chart.curves.map(curve => nearest(curve.x, step));
    const at = chart.curves[0].x[places[0]];
    const x = across(chart.frame, at).toFixed(1);
    one(".cross", figure).setAttribute("d", `M${x} ${TOP}V${BOTTOM}`);
    const values = chart.curves.map((curve, place) =>
      (chart.curves.length > 1 ? `${curve.label} ` : "") + short(curve.y[places[place]]));
    one("output", figure).textContent = `step ${short(at)}: ${values.join(" · ")}`;
    return places[0];
  };
  all(".chart").forEach(figure => {
    const chart = charts[Number(figure.dataset.chart)], svg = one("svg", figure);
    let place = -1;
    svg.addEventListener("pointermove", event => {
      const box = svg.getBoundingClientRect(), share = ((event.clientX - box.left) / box.width * 360 - LEFT) / (RIGHT - LEFT);
      place = show(figure, chart, chart.frame[0] + share * (chart.frame[1] - chart.frame[0]));
    });
    svg.addEventListener("pointerleave", () => { one(".cross", figure).setAttribute("d", ""); one("output", figure).textContent = ""; });
    figure.addEventListener("keydown", event => {
      const steps = chart.curves[0].x, last = steps.length - 1;
      const next = { ArrowRight: place + 1, ArrowLeft: place < 0 ? last : place - 1, Home: 0, End: last }[event.key];
      if (next === undefined) return;
      event.preventDefault();
      place = show(figure, chart, steps[Math.min(last, Math.max(0, next))]);
    });
  });
  const smoothing = one("#smoothing");
  if (smoothing) smoothing.addEventListener("input", () => {
    // In the middle a twentieth of the points, as the page was drawn; at the ends nothing and four times as much.
    const share = smoothing.value <= 50 ? smoothing.value / 50 : 1 + (smoothing.value - 50) * 0.06;
    all(".chart").forEach(figure => {
      const chart = charts[Number(figure.dataset.chart)], lines = all(".smooth", figure);
      chart.curves.forEach((curve, number) => {
        const points = smoothed(curve.y, curve.y.length / 20 * share).map((value, place) =>
          `${across(chart.frame, curve.x[place]).toFixed(1)} ${down(chart.frame, value).toFixed(1)}`);
        lines[number].setAttribute("d", "M" + points.join("L"));
      });
    });
  });
  const find = one("#find");
  if (find) find.addEventListener("input", () => {
    const wanted = find.value.toLowerCase();
    all(".chart").forEach(figure => { figure.hidden = !figure.getAttribute("aria-label").toLowerCase().includes(wanted); });
    all(".group").forEach(group => {
      group.hidden = !one(".chart:not([hidden])", group);
      if (wanted) group.open = true;
    });
  });

  // Numbers per token, drawn when somebody asks for them.
  let heat = null;
  const paint = (said, answer, name) => {
    const values = answer.maps[name];
    // The scale leaves out the most extreme hundredth, so that one token does not pale all others.
    const sizes = values.map(Math.abs).sort((a, b) => a - b);
    const most = sizes[Math.ceil(0.99 * sizes.length) - 1] || 1;
    said.replaceChildren(...answer.tokens.map((token, place) => {
      const span = make("span", token), strength = Math.min(1, Math.abs(values[place]) / most);
      span.style.background = `rgb(var(--${values[place] < 0 ? "cold" : "hot"}) / ${(0.62 * strength).toFixed(3)})`;
      span.title = `${JSON.stringify(token)}: ${short(values[place])}`;
      return span;
    }));
    return most;
  };
  const offer = said => {
    heat = heat || read("heat-data");
    const answer = heat[Number(said.dataset.heat)], whole = said.textContent;
    if (!answer || said.dataset.offered) return;
    said.dataset.offered = "1";
    const row = make("div", "", "maps"), scale = make("span", "", "scale");
    const press = (button, act) => button.addEventListener("click", () => {
      all("button", row).forEach(each => each.setAttribute("aria-pressed", String(each === button)));
      act();
    });
    const plain = make("button", "text");
    plain.type = "button";
    plain.setAttribute("aria-pressed", "true");
    press(plain, () => { said.classList.remove("heat"); said.textContent = whole; scale.textContent = ""; });
    row.append(plain);
    Object.keys(answer.maps).forEach(name => {
      const button = make("button", name.replace("dependence/", "visual dependence: "));
      button.type = "button";
      press(button, () => {
        said.classList.add("heat");
        const most = paint(said, answer, name);
        scale.textContent = `blue −${short(most)} · none 0 · red +${short(most)}` +
          (name === "advantage" ? "" : " nats") + `, first ${answer.tokens.length} tokens`;
      });
      row.append(button);
    });
    row.append(scale);
    said.after(row);
  };
  const cards = all("details.card");
  const opened = card => all("[data-heat]", card).forEach(offer);
  cards.forEach(card => {
    card.addEventListener("toggle", () => { if (card.open) opened(card); });
    // Not before the page is there: numbers of a long run take a moment to read.
    if (card.open) setTimeout(() => opened(card), 0);
  });

  // Keys, unless somebody types.
  const go = by => {
    const here = cards.indexOf(document.activeElement.closest("details.card"));
    const card = cards[Math.min(cards.length - 1, Math.max(0, here + by))];
    if (!card) return;
    card.open = true;
    one("summary", card).focus();
    card.scrollIntoView({ block: "start" });
    scrollBy(0, -one("header").offsetHeight - 8);
  };
  document.addEventListener("keydown", event => {
    if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName)) return;
    const open = cards.some(card => card.open);
    const acts = { j: () => go(1), k: () => go(-1), t: turn, "?": () => help.showModal(),
      o: () => cards.forEach(card => { card.open = !open; }) };
    if (acts[event.key]) { event.preventDefault(); acts[event.key](); }
  });
})();
