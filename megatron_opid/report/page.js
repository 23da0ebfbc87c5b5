// Start-up: unpack the embedded data, draw, and say on the page what went wrong if something did.

async function unpack(base64) {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

function showProblem(error) {
  const place = document.getElementById("problem");
  place.textContent = `This report could not be drawn: ${error.message}`;
  place.hidden = false;
  throw error;
}

// make("p", {className: "x"}, "text", node…): all text goes through text nodes, never through innerHTML
function make(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

async function main() {
  const { nonce } = document.currentScript;
  const data = JSON.parse(await unpack(document.getElementById("data").textContent));
  if (document.getElementById("trajectories")) browseTrajectories(data);
  const source = await unpack(document.getElementById("plotly").textContent);
  const library = make("script", { nonce });
  library.textContent = source;
  document.head.append(library);
  drawCharts(data);
  document.body.dataset.ready = "yes";
}
