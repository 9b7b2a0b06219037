// Sliders between base model and step, and the choice of a step, for one prompt or for all of them.
for (const compare of document.querySelectorAll(".compare.pair")) {
  const slider = compare.querySelector("input");
  slider.addEventListener("input", () => compare.style.setProperty("--at", slider.value + "%"));
}

function show(subject, step) {
  const chosen = subject.querySelector(`.strip button[data-step="${step}"]`);
  if (!chosen) return;
  for (const button of subject.querySelectorAll(".strip button")) {
    button.setAttribute("aria-pressed", button === chosen);
  }
  for (const image of subject.querySelectorAll(".after")) image.hidden = image.dataset.step !== step;
  const label = subject.querySelector(".label.right");
  if (label) label.textContent = "step " + step;
}

for (const button of document.querySelectorAll(".strip button")) {
  button.addEventListener("click", () => show(button.closest(".subject"), button.dataset.step));
}
const all = document.querySelectorAll(".steps button");
for (const button of all) {
  button.addEventListener("click", () => {
    for (const other of all) other.setAttribute("aria-pressed", other === button);
    for (const subject of document.querySelectorAll(".subject")) show(subject, button.dataset.step);
  });
}
