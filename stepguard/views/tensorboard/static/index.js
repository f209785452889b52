// What TensorBoard calls: brings the style sheets and the chart library, then the page.
export async function render() {
  document.title = "StepGuard";
  document.documentElement.lang = "en";
  await Promise.all([style("uPlot.min.css"), style("style.css"), script("uPlot.iife.min.js")]);
  const { start } = await import("./app.js");
  await start(document.body);
}

function style(file) {
  return added(Object.assign(document.createElement("link"), { rel: "stylesheet", href: file }));
}

function script(file) {
  return added(Object.assign(document.createElement("script"), { src: file }));
}

function added(element) {
  return new Promise((resolve, reject) => {
    element.onload = resolve;
    element.onerror = () => reject(new Error(`${element.src || element.href} did not load`));
    document.head.append(element);
  });
}
