// Draws attention maps: <div class="attention"> with the weights as JSON. Hovering shows the words, a click enlarges.
(() => {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const tip = document.createElement("div");
  tip.id = "tip";
  document.body.append(tip);

  for (const place of document.querySelectorAll("div.attention")) {
    const view = JSON.parse(place.querySelector("script").textContent);
    const values = Uint8Array.from(atob(view.data), (c) => c.charCodeAt(0));
    const size = view.rows * view.columns;
    const maps = [];
    for (let layer = 0; layer < view.layers; layer++) {
      const row = document.createElement("div");
      row.className = "layer";
      const label = document.createElement("small");
      label.textContent = view.titles[layer];
      row.append(label);
      for (let head = 0; head < view.heads; head++) {
        const canvas = document.createElement("canvas");
        canvas.width = view.columns;
        canvas.height = view.rows;
        const start = (layer * view.heads + head) * size;
        const name = view.heads > 1 ? `${view.titles[layer]}, head ${head + 1}` : view.titles[layer];
        canvas.setAttribute("role", "img");
        canvas.setAttribute("aria-label", `attention of ${name}`);
        canvas.addEventListener("mousemove", (event) => {
          const box = canvas.getBoundingClientRect();
          const at = (position, length, count) => Math.min(count - 1, Math.floor((position / length) * count));
          const line = at(event.clientY - box.top, box.height, view.rows);
          const column = at(event.clientX - box.left, box.width, view.columns);
          const weight = (values[start + line * view.columns + column] / 255) ** 2 * view.most;
          tip.textContent = `${name}: ${view.queries[line]} → ${view.keys[view.keys.length > 1 ? line : 0][column] ?? ""} ${weight.toPrecision(2)}`;
          tip.style.display = "block";
          tip.style.left = `${Math.min(event.clientX + 12, innerWidth - tip.offsetWidth - 8)}px`;
          tip.style.top = `${Math.min(event.clientY + 12, innerHeight - tip.offsetHeight - 8)}px`;
        });
        canvas.addEventListener("mouseleave", () => { tip.style.display = "none"; });
        canvas.addEventListener("click", () => { canvas.classList.toggle("large"); });
        maps.push({ canvas, start });
        row.append(canvas);
      }
      place.append(row);
    }
    const draw = () => {
      const color = dark.matches ? [134, 176, 255] : [31, 95, 191];
      for (const { canvas, start } of maps) {
        const image = new ImageData(view.columns, view.rows);
        for (let index = 0; index < size; index++) image.data.set([...color, values[start + index]], 4 * index);
        canvas.getContext("2d").putImageData(image, 0, 0);
      }
    };
    draw();
    dark.addEventListener("change", draw);
  }
  document.documentElement.dataset.maps = document.querySelectorAll("div.attention canvas").length;
})();
