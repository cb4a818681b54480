// transformers.js in headless Chromium, WebAssembly with threads; the page is served on loopback
// and may reach nothing else: node chromium.mjs NODE_MODULES_FOLDER JOB RESULT

import fs from "node:fs";
import http from "node:http";
import { createRequire } from "node:module";
import path from "node:path";

const [, , folder, jobFile, resultFile] = process.argv;
const job = JSON.parse(fs.readFileSync(jobFile, "utf8"));
const require = createRequire(path.join(folder, "package.json"));
const puppeteer = require("puppeteer-core");

const roots = {
  npm: path.join(folder, "node_modules"),
  run: import.meta.dirname ?? path.dirname(new URL(import.meta.url).pathname),
  models: path.dirname(job.bundle),
};
const types = {
  ".html": "text/html", ".mjs": "text/javascript", ".js": "text/javascript",
  ".wasm": "application/wasm", ".json": "application/json",
};

function found(url) {
  if (url.pathname === "/job.json") return jobFile;
  const [, root, ...rest] = decodeURIComponent(url.pathname).split("/");
  return roots[root] === undefined ? undefined : path.join(roots[root], ...rest);
}

const server = http.createServer((request, response) => {
  const file = found(new URL(request.url, "http://127.0.0.1"));
  // Threads in WebAssembly need shared memory, which a browser gives to isolated pages only.
  response.setHeader("Cross-Origin-Opener-Policy", "same-origin");
  response.setHeader("Cross-Origin-Embedder-Policy", "require-corp");
  if (file === undefined || !fs.statSync(file, { throwIfNoEntry: false })?.isFile()) {
    response.writeHead(404).end();
    return;
  }
  response.setHeader("Content-Type", types[path.extname(file)] ?? "application/octet-stream");
  response.setHeader("Content-Length", fs.statSync(file).size);
  fs.createReadStream(file).pipe(response);
});
await new Promise((ready) => server.listen(0, "127.0.0.1", ready));
const origin = `http://127.0.0.1:${server.address().port}`;

const browser = await puppeteer.launch({
  executablePath: job.chromium,
  headless: true,
  protocolTimeout: 1000 * job.seconds,
  args: ["--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"],
});
try {
  const page = await browser.newPage();
  const outside = [];
  page.on("request", (request) => {
    const url = request.url();
    if (!url.startsWith(origin) && !/^(blob|data):/.test(url)) outside.push(url);
  });
  page.on("console", (message) => console.error(message.text()));
  page.on("pageerror", (error) => console.error(error));
  await page.goto(`${origin}/run/page.html?name=${path.basename(job.bundle)}`);
  const result = await page.evaluate(() => globalThis.result);
  result.versions.chromium = await browser.version();
  fs.writeFileSync(resultFile, JSON.stringify({ ...result, outside }));
} finally {
  await browser.close();
  server.close();
  server.closeAllConnections();
}
