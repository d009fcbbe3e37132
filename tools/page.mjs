// Looks at the status page in headless Chromium: sends a chat, waits for the answer, takes screenshots.
// Usage: node --experimental-websocket tools/page.mjs URL OUT_DIR    (CHROMIUM names the program; default: chromium)
import { spawn } from "node:child_process";
import { writeFileSync, mkdtempSync } from "node:fs";
const [url, out] = process.argv.slice(2);
const profile = mkdtempSync("/tmp/page-");
const browser = spawn(process.env.CHROMIUM || "chromium", ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0",
  "--user-data-dir=" + profile, "about:blank"], { stdio: ["ignore", "ignore", "pipe"] });
const endpoint = await new Promise((done, fail) => {
  let said = ""; browser.stderr.on("data", d => { said += d; const m = said.match(/listening on (ws:\S+)/); if (m) done(m[1]); });
  browser.on("exit", () => fail(new Error(said)));
});
const port = new URL(endpoint).port;
const target = (await (await fetch(`http://127.0.0.1:${port}/json/list`)).json()).find(t => t.type === "page");
const socket = new WebSocket(target.webSocketDebuggerUrl);
await new Promise(done => socket.onopen = done);
let last = 0; const waiting = new Map(), errors = [];
socket.onmessage = ({ data }) => {
  const m = JSON.parse(data);
  if (m.id) { waiting.get(m.id)(m.result); waiting.delete(m.id); }
  if (m.method === "Runtime.exceptionThrown") errors.push(m.params.exceptionDetails.text);
  if (m.method === "Runtime.consoleAPICalled" && m.params.type === "error") errors.push(JSON.stringify(m.params.args));
  if (m.method === "Log.entryAdded" && m.params.entry.level === "error") errors.push(m.params.entry.text + " " + m.params.entry.url);
};
const call = (method, params = {}) => new Promise(done => { waiting.set(++last, done); socket.send(JSON.stringify({ id: last, method, params })); });
const value = async expression => (await call("Runtime.evaluate", { expression, awaitPromise: true, returnByValue: true })).result.value;
const sleep = ms => new Promise(done => setTimeout(done, ms));
const shot = async (name, width, height, mobile) => {
  await call("Emulation.setDeviceMetricsOverride", { width, height, deviceScaleFactor: 1, mobile });
  await sleep(300);
  const { data } = await call("Page.captureScreenshot", { captureBeyondViewport: true });
  writeFileSync(`${out}/${name}.png`, Buffer.from(data, "base64"));
  return value("document.documentElement.scrollWidth - innerWidth");
};
for (const domain of ["Page", "Runtime", "Log"]) await call(domain + ".enable");
await call("Page.navigate", { url });
await sleep(2500);
await value(`document.getElementById("text").value = "How do I reserve huge pages?"; document.getElementById("form").requestSubmit();`);
let answer = "";
for (let i = 0; i < 100 && (answer.length < 20 || await value(`document.getElementById("send").textContent`) !== "Send"); i++) {
  await sleep(200);
  answer = await value(`(document.querySelector("#talk .assistant") || {}).textContent || ""`);
}
await sleep(1500);
const wide = await shot("page", 1200, 900, false), narrow = await shot("page-phone", 390, 1400, true);
console.log(JSON.stringify({ answer, state: await value(`document.getElementById("state").textContent`), overflow: { wide, narrow }, errors }));
browser.kill();
process.exit(answer.length > 20 && wide <= 0 && narrow <= 0 && errors.length === 0 ? 0 : 1);
