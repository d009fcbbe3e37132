// A session with the page in headless Chromium: against the server, and against a stand-in that serves the server's page
// with answers made for the purpose. Usage, in a directory with playwright-core:
//   node session.mjs http://127.0.0.1:8080 [DIRECTORY FOR SCREENSHOTS]        (CHROMIUM names the browser)
import assert from "node:assert/strict";
import { existsSync, mkdtempSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import http from "node:http";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { gzipSync } from "node:zlib";

const { chromium } = createRequire(process.cwd() + "/")("playwright-core");
const [brim, shots] = process.argv.slice(2);
if (shots) mkdirSync(shots, { recursive: true });
const sleep = ms => new Promise(done => setTimeout(done, ms));

// ------------------------------------------------------------------------------------------------------- The stand-in

/** The page as the server sends it. */
const original = await fetch(brim + "/");
const document_ = await original.text();
const policy = original.headers.get("content-security-policy");

const FACTS = {
  model: "stand-in",
  regions: [
    ["weights", 8e9],
    ["vocab", 2e7],
    ["kv", 1.2e9],
    ["states", 3e8],
    ["scratch", 2e8],
  ].map(([name, bytes]) => ({ name, bytes, pages: Math.ceil(bytes / 2 ** 21) })),
  page_bytes: 2 ** 21,
  hugepages: true,
  total_bytes: 9.8e9,
  total_pages: 4700,
  memory_total_bytes: 16e9,
};

class StandIn {
  constructor() {
    this.asked = [];
    this.answers = {};
    this.counts = {};
    this.key = null;
    this.status = {
      version: "0.0.0",
      state: "ready",
      load: { bytes_done: 8e9, bytes_total: 8e9 },
      connections: 3,
      resident_bytes: 9e6,
      facts: FACTS,
      model: "stand-in-8b-q4_k_m",
      ctx: 8192,
      slots: [
        { state: "decode", tokens: 1311 },
        { state: "prefill", tokens: 4096 },
        { state: "waiting", tokens: 77 },
        { state: "free", tokens: 0 },
      ],
      queue: 2,
      tokens_in: 41000,
      tokens_reused: 162000,
      tokens_out: 9000,
      steps: 6000,
      kv_pages: { all: 512, used: 96, cached: 300 },
      has_template: true,
      checkpoints: { all: 12, used: 7, taken: 31, hits: 22 },
      speculation: { drafted: 4000, accepted: 2600 },
      requests: {
        finished: 61,
        cancelled: 3,
        failed: 1,
        first_token_count: 64,
        first_token_s: 27.1,
        refused: [{ route: "/v1/chat/completions", status: 400, count: 2 }],
        connections_refused: 0,
        log_lines_lost: 4,
      },
    };
    this.models = ["stand-in-8b-q4_k_m"];
  }

  async listen() {
    this.server = http.createServer((request, response) =>
      this.answer(request, response).catch(error => response.destroy(error)),
    );
    await new Promise(done => this.server.listen(0, "127.0.0.1", done));
    this.url = `http://127.0.0.1:${this.server.address().port}`;
    return this;
  }

  async answer(request, response) {
    const [path, query] = request.url.split("?");
    this.counts[path] = (this.counts[path] || 0) + 1;
    const json = (status, value, headers) => {
      response.writeHead(status, { "content-type": "application/json", ...headers });
      response.end(JSON.stringify(value));
    };
    if (path === "/") {
      response.writeHead(200, { "content-type": "text/html; charset=utf-8", "content-security-policy": policy });
      return response.end(document_);
    }
    if (this.key && request.headers.authorization !== "Bearer " + this.key)
      return json(401, { error: { message: "an API key is required" } });
    if (path === "/status") {
      this.statusOf = new URLSearchParams(query).get("model");
      this.status.tokens_out += 20 + Math.round(15 * Math.sin(this.counts[path]));
      this.status.tokens_in += 300;
      return json(200, this.status);
    }
    if (path === "/v1/models") return json(200, { data: this.models.map(id => ({ id })) });
    if (path !== "/v1/chat/completions") return json(404, { error: { message: "no such route" } });
    let body = "";
    for await (const chunk of request) body += chunk;
    body = JSON.parse(body);
    this.asked.push(body);
    const last = body.messages.findLast(message => message.role === "user").content,
      script = this.answers[last] || this.answers[last.split("\n\n").at(-1)] || [{ content: "Well." }];
    if (script.status) return json(script.status, { error: { message: script.message } }, script.headers);
    response.writeHead(200, { "content-type": "text/event-stream" });
    const send = value => response.write(`data: ${JSON.stringify(value)}\n\n`);
    const steps = typeof script === "function" ? script(body) : script;
    let closed = false,
      end = "stop";
    response.on("close", () => {
      closed = true;
      this.left = (this.left || 0) + (response.writableFinished ? 0 : 1);
    });
    response.write(": reading\n\n");
    for (const step of steps) {
      if (closed) return;
      if (typeof step === "number") {
        await sleep(step);
        continue;
      }
      if (typeof step === "function") {
        await step();
        continue;
      }
      if (step.end) {
        end = step.end;
        continue;
      }
      if (step.break) return response.destroy();
      if (step.error || step.prompt_progress) {
        send(step);
        continue;
      }
      send({ choices: [{ index: 0, delta: step, finish_reason: null }] });
      if (step.tool_calls) end = "tool_calls";
    }
    send({ choices: [{ index: 0, delta: {}, finish_reason: end }] });
    send({ choices: [], usage: { prompt_tokens: 1204, completion_tokens: 512, prompt_tokens_details: { cached_tokens: 1152 } } });
    response.end("data: [DONE]\n\n");
  }
}

/** A text in pieces as a model writes it. */
const pieces = (text, size = 7, pause) =>
  [...text.matchAll(new RegExp(`[\\s\\S]{1,${size}}`, "g"))].flatMap(([content]) =>
    pause ? [{ content }, pause] : [{ content }],
  );

// -------------------------------------------------------------------------------------------------------- The browser

/** The browser, where it is not a path: the first of that name on the path. */
const program = process.env.CHROMIUM || "chromium";
const places = program.includes("/") ? [program] : process.env.PATH.split(":").map(place => `${place}/${program}`);
const browser = await chromium.launch({
  executablePath: places.find(place => existsSync(place)),
  args: [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
  ],
});

const steps = [];
const step = (name, work) => steps.push({ name, work });

/** A page with nothing on its console but what `allowed` has, that asks nobody but its server. */
async function visit(url, { allowed = /$^/, ...options } = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 860 }, ...options });
  const page = await context.newPage();
  page.noise = [];
  page.on("console", message => {
    if (["error", "warning"].includes(message.type()) && !allowed.test(message.text())) page.noise.push(message.text());
  });
  page.on("pageerror", error => page.noise.push(String(error.stack)));
  page.on("request", request => {
    if (!request.url().startsWith(url) && !/^(data|blob):/.test(request.url())) page.noise.push("asked " + request.url());
  });
  page.setDefaultTimeout(30000);
  await page.goto(url + "/");
  await page.locator("#state .dot").waitFor();
  return page;
}

async function leave(page) {
  assert.deepEqual(page.noise, []);
  await page.context().close();
}

async function ask(page, text, { whole = true } = {}) {
  await page.locator("#text").fill(text);
  await page.keyboard.press("Enter");
  if (whole) await done(page);
}
/** Until no answer is being written. */
const done = page => page.locator("#send[aria-label=Send]").waitFor();
const shot = (page, name) => shots && page.screenshot({ path: `${shots}/${name}.png` });
const fits = async page =>
  assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), "something is wider than the window");
const answerText = page => page.locator(".message.assistant > .md").last().innerText();

/** What is shown without a name for those who do not see it, or with too little contrast for those who see little. */
const faultsOf = page =>
  page.evaluate(() => {
    const faults = [];
    const shown = e => e.checkVisibility();
    for (const e of document.querySelectorAll("button, input, textarea, select, summary, [role=img]")) {
      const name = e.getAttribute("aria-label") || e.textContent.trim() || e.labels?.[0]?.textContent || e.title;
      if (shown(e) && !name) faults.push("no name: " + e.outerHTML.slice(0, 80));
    }
    const luminance = ([r, g, b]) =>
      [r, g, b]
        .map(v => ((v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const numbers = colour => colour.match(/[\d.]+/g).map(Number);
    for (const e of document.querySelectorAll("body *")) {
      if (
        ![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()) ||
        !shown(e) ||
        /SCRIPT|STYLE|OPTION/.test(e.tagName) ||
        e.closest("[disabled], .quiet, .skip")
      )
        continue;
      let ground = e;
      while (ground && numbers(getComputedStyle(ground).backgroundColor)[3] === 0) ground = ground.parentElement;
      const [a, b] = [numbers(getComputedStyle(e).color), numbers(getComputedStyle(ground || document.body).backgroundColor)]
        .map(luminance)
        .sort((x, y) => y - x);
      if ((a + 0.05) / (b + 0.05) < 4.5)
        faults.push(`contrast ${((a + 0.05) / (b + 0.05)).toFixed(2)}: ${e.outerHTML.slice(0, 80)}`);
    }
    return faults;
  });

const MARKDOWN = `# Pages

A page is **2 MiB**, *not* ~~4 KiB~~ \`4096\`; see [the docs](https://example.org/a_(b)?x=1&y=2 "title") or https://example.org/x_y_z.
A new line. snake_case_name stays, 2 * 3 * 4 too, and **bold *both* bold**.
**Note:**no blank, 中文**粗体**文字; a &lt;b&gt; &amp; \\*c\\*.

1. First
   - inner with \`code\`
   - [x] not a task list, but ok
2. Second:

   \`\`\`sh
   sysctl -w vm.nr_hugepages=2724  # reserve
   \`\`\`
3. Third

- [ ] open
- [x] closed

| size | bytes |
|------|------:|
| KiB  | 1024  |
| a \\| b | **x** |

> A quote
> of two lines

\`\`\`rust
fn main() {
    let greeting = "hello"; // a note
    println!("{greeting} {}", 42);
}
\`\`\`

The sum $\\sum_{i=1}^{n} x_i^2 \\le \\frac{a}{b}$ costs $5 or $10:

$$\\int_0^\\infty e^{-x^2} dx = \\frac{\\sqrt{\\pi}}{2}$$

---
End.`;

step("Markdown, as it comes and when it is whole", async () => {
  const server = await new StandIn().listen();
  server.answers["show"] = pieces(MARKDOWN, 5, 1);
  const page = await visit(server.url);
  await ask(page, "show");
  const md = page.locator(".message.assistant > .md");
  const has = async (selector, text) =>
    assert.ok(
      (await md.locator(selector).allInnerTexts()).some(found => found.includes(text)),
      `${selector} with ${text}`,
    );
  await has("h1", "Pages");
  await has("strong", "2 MiB");
  await has("em", "not");
  await has("del", "4 KiB");
  await has("strong em", "both");
  await has("ol > li > ul > li code", "code");
  await has("ol > li .block code", "sysctl -w");
  await has("blockquote", "of two lines");
  await has("pre code .t-word", "fn");
  await has("pre code .t-string", "hello");
  await has("td", "a | b");
  await has("td strong", "x");
  assert.equal(await md.locator("ol").count(), 1, "one list");
  assert.equal(await md.locator("li.task input:checked").count(), 2);
  assert.equal(await md.locator("td.right").count(), 2);
  assert.equal(await md.locator("math").count(), 2);
  assert.equal(await md.locator("mfrac").count(), 2);
  assert.match(await md.innerText(), /snake_case_name stays, 2 \* 3 \* 4 too/);
  await has("strong", "粗体");
  assert.match(await md.innerText(), /\nNote:no blank, 中文粗体文字; a <b> & \*c\*\.\n/);
  assert.match(await md.innerText(), /costs \$5 or \$10:/);
  assert.deepEqual(
    await md.locator("a").evaluateAll(links => links.map(a => [a.getAttribute("href"), a.rel, a.target])),
    ["https://example.org/a_(b)?x=1&y=2", "https://example.org/x_y_z"].map(href => [href, "noopener noreferrer", "_blank"]),
  );
  // Built piece by piece it is what it is when it is built at once.
  const streamed = await md.evaluate(e => e.innerHTML);
  await shot(page, "markdown-light");
  await page.reload();
  await md.waitFor();
  assert.equal(await md.evaluate(e => e.innerHTML), streamed);
  // What is copied is the code, nothing else.
  await page.context().grantPermissions(["clipboard-read", "clipboard-write"]);
  await md.locator(".block button").last().click();
  assert.match(await page.evaluate(() => navigator.clipboard.readText()), /^fn main\(\) \{\n    let greeting[^]*\}$/);
  assert.match(
    await page.locator(".figures").innerText(),
    /512 tokens · [\d.]+ tokens\/s · first after [\d.]+ s · prompt 1,204 \(1,152 known\)/,
  );
  await leave(page);
});

step("what models, tools and files write is never markup", async () => {
  const evil = `<img src=x onerror="hit=1"><script>hit=1</script><svg onload="hit=1"><iframe src="/x"></iframe><style>*{display:none}</style>`;
  const server = await new StandIn().listen();
  const links =
    '[a](javascript:hit=1) [b](JaVaScRiPt:hit=1) [c](data:text/html,x) [d]( java\tscript:hit=1) [e](/status) <javascript:hit=1> [f](vbscript:x) ![g](http://127.0.0.1:9/pixel.png) [h](https://ok.example/"onmouseover="hit=1) [i](mailto:a@b.example)';
  server.status.model = evil;
  server.status.facts = { ...FACTS, regions: [{ name: evil, bytes: 5, pages: 1 }] };
  server.status.slots = [{ state: evil, tokens: 1 }];
  server.status.requests.refused = [{ route: evil, status: 400, count: 1 }];
  server.models = [evil, "other"];
  const call = { tool_calls: [{ index: 0, id: evil, function: { name: evil, arguments: JSON.stringify({ a: evil }) } }] };
  server.answers[evil] = [
    { reasoning_content: evil },
    ...pieces(
      `${evil}\n\n${links}\n\n\`\`\`"><img/src=x/onerror=hit=1>\n${evil}\n\`\`\`\n\n# ${evil}\n\n|${evil}|b|\n|-|-|\n|${evil}|b|\n\n- ${evil}\n\n$\\text{${evil}}$ $$<img src=x onerror=hit=1>$$\n\n\`${evil}\``,
      9,
    ),
    call,
  ];
  server.answers["fail"] = { status: 400, message: evil };
  const page = await visit(server.url, { allowed: /status of 400/ });
  await page.locator("#state").click();
  await page.locator("#regions dd").first().waitFor();
  await ask(page, evil);
  await page.locator("#log details.fold summary").first().click();
  await page.locator(".results textarea").fill(evil);
  await page.getByRole("button", { name: "Give result" }).click();
  await done(page);
  await ask(page, "fail");
  await page.locator(".error").waitFor();
  await page.setInputFiles("#attach-file", {
    name: `${evil}.txt`.replaceAll("/", " "),
    mimeType: "text/plain",
    buffer: Buffer.from(evil),
  });
  await ask(page, "with a file");
  const file = {
    conversations: [
      {
        id: 'x"><img src=x onerror=hit=1>',
        title: evil,
        nodes: [
          { id: 1, role: "user", content: evil },
          { id: 2, parent: 1, role: "assistant", content: evil, calls: [{ name: evil }, null, 4], figures: { tokens: evil } },
          { id: 3, parent: 9, role: evil },
        ],
        picks: { __proto__: 7 },
      },
    ],
  };
  await page.setInputFiles("#import-file", {
    name: "c.json",
    mimeType: "application/json",
    buffer: Buffer.from(JSON.stringify(file)),
  });
  await page.locator("#list .entry").nth(1).waitFor();
  await page.locator("#list .entry .open").first().click();
  await sleep(300);
  await page.locator("#list .entry .open").nth(1).click();
  // The imported conversation has a call, too, but no link.
  await page.locator("#log a").first().waitFor();
  const seen = await page.evaluate(() => ({
    hit: typeof hit,
    images: document.querySelectorAll("img, iframe, object, embed, svg[onload]").length,
    scripts: document.scripts.length,
    styles: document.querySelectorAll("style").length,
    handlers: [...document.querySelectorAll("*")].filter(e => [...e.attributes].some(a => /^on/.test(a.name))).length,
    links: [...document.querySelectorAll("#log a")]
      .map(a => a.protocol)
      .filter((p, i, all) => all.indexOf(p) === i)
      .sort(),
    title: document.title,
  }));
  assert.deepEqual(
    { ...seen, title: "" },
    { hit: "undefined", images: 0, scripts: 1, styles: 1, handlers: 0, links: ["http:", "https:", "mailto:"], title: "" },
  );
  assert.ok(seen.title.startsWith("<img src=x"), "the title is text");
  assert.ok((await page.locator(".message.user .text").first().innerText()).startsWith("<img src=x onerror="));
  assert.equal(await page.locator(".call summary code").first().innerText(), evil);
  // Even a fault in the page could not turn text into markup.
  const refused = await page.evaluate(() => {
    try {
      document.body.innerHTML = "<b>x</b>";
      return "taken";
    } catch (error) {
      return error.name;
    }
  });
  assert.equal(refused, "TypeError");
  page.noise = page.noise.filter(noise => !/Trusted ?Type|TrustedHTML|TrustedScript/.test(noise));
  await leave(page);
});

step("the policy of the page is strict", async () => {
  assert.match(policy, /default-src 'none'/);
  assert.doesNotMatch(policy, /unsafe|\*|https?:/);
  assert.match(policy, /script-src 'sha256-[\w+/]{43}='; style-src 'sha256-[\w+/]{43}=';/);
  assert.ok(gzipSync(document_).length <= 65536, "larger than 64 KiB compressed");
  assert.doesNotMatch(document_, /\b(?:src|href)="(?!#|data:)/, "an external resource");
});

step("thoughts and calls are folded; results are given by hand", async () => {
  const server = await new StandIn().listen();
  const call = (index, id, name) => ({ tool_calls: [{ index, id, type: "function", function: { name, arguments: "" } }] }),
    more = (index, text) => ({ tool_calls: [{ index, function: { arguments: text } }] });
  server.answers["weather?"] = body =>
    body.messages.at(-1).role === "tool"
      ? [{ reasoning_content: "Both came." }, ...pieces("It is **cold**.")]
      : [
          { reasoning_content: "I need " },
          20,
          { reasoning_content: "the *weather*." },
          { content: "Let me look." },
          call(0, "c1", "weather"),
          more(0, '{"city":'),
          more(0, '"Oslo"}'),
          call(1, "c2", "time"),
          more(1, "{}"),
        ];
  const page = await visit(server.url);
  await page.locator("#settings-open").click();
  await page.locator("#tools").fill("{");
  assert.match(await page.locator("#tools + .wrong").innerText(), /JSON/);
  await page.locator("#tools").fill('[{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]');
  await page.locator("#system").fill("Be brief.");
  await page.locator("#set-temperature").fill("0.5");
  await page.locator("#set-max_tokens").fill("99");
  await page.locator("#stop").fill("END\n");
  await page.locator("#effort").selectOption("low");
  await shot(page, "settings");
  await page.keyboard.press("Escape");
  await ask(page, "weather?");
  const first = server.asked[0];
  assert.deepEqual(
    [first.temperature, first.max_tokens, first.stop, first.reasoning_effort, first.tools.length, first.messages[0]],
    [0.5, 99, ["END"], "low", 1, { role: "system", content: "Be brief." }],
  );
  await page.locator("#told summary").click();
  assert.equal(await page.locator("#told-text").innerText(), "Be brief.");
  assert.equal(await page.locator("details.thought").evaluate(e => e.open), false);
  assert.deepEqual(await page.locator(".call summary code").allInnerTexts(), ["weather", "time"]);
  assert.equal(
    await page
      .locator(".call")
      .first()
      .evaluate(e => e.open),
    false,
  );
  await page.locator(".thought summary").click();
  assert.equal(await page.locator(".thought em").innerText(), "weather");
  await page.locator(".call summary").first().click();
  assert.match(await page.locator(".call pre").first().innerText(), /"city": "Oslo"/);
  await page.locator(".results textarea").first().fill("-5");
  await page.locator(".results textarea").nth(1).fill("noon");
  await shot(page, "tools");
  await page.getByRole("button", { name: "Give results" }).click();
  await done(page);
  assert.deepEqual(server.asked[1].messages.slice(2), [
    {
      role: "assistant",
      content: "Let me look.",
      reasoning_content: "I need the *weather*.",
      tool_calls: [
        { id: "c1", type: "function", function: { name: "weather", arguments: '{"city":"Oslo"}' } },
        { id: "c2", type: "function", function: { name: "time", arguments: "{}" } },
      ],
    },
    { role: "tool", tool_call_id: "c1", content: "-5" },
    { role: "tool", tool_call_id: "c2", content: "noon" },
  ]);
  assert.equal(await answerText(page), "It is cold.");
  await leave(page);
});

step("stop, answer again, edit, versions, delete and undo", async () => {
  const server = await new StandIn().listen();
  let n = 0;
  server.answers["long"] = () => Array.from({ length: 400 }, (_, i) => [{ content: `word${i} ` }, 20]).flat();
  server.answers["short"] = () => pieces(`Answer ${++n}.`);
  const page = await visit(server.url);
  await ask(page, "long", { whole: false });
  await page.getByText("word5").waitFor();
  await page.keyboard.press("Escape");
  await done(page);
  await page.getByText("Stopped.").waitFor();
  await sleep(200);
  assert.equal(server.left, 1, "the server sees that nobody reads");
  const kept = await answerText(page);
  assert.match(kept, /word5/);
  // What was stopped is part of the conversation.
  await ask(page, "short");
  assert.match(server.asked.at(-1).messages[1].content, /word5/);
  await page.getByRole("button", { name: "Answer again" }).last().click();
  await done(page);
  assert.equal(await answerText(page), "Answer 2.");
  assert.deepEqual(server.asked.at(-1).messages, server.asked.at(-2).messages);
  assert.match(await page.locator(".versions").innerText(), /2 \/ 2/);
  await page.getByRole("button", { name: "Version before" }).click();
  assert.equal(await answerText(page), "Answer 1.");
  // A changed question is a branch; the arrow edits the last one.
  await page.locator("#text").focus();
  await page.keyboard.press("ArrowUp");
  await page.locator(".editor textarea").fill("short ");
  await page.keyboard.press("Escape");
  assert.equal(await page.locator(".editor").count(), 0);
  const question = page.locator(".message.user").last();
  await question.hover();
  await question.getByRole("button", { name: "Edit" }).click();
  await page.locator(".editor textarea").fill("another");
  await page.keyboard.press("Enter");
  await done(page);
  assert.equal(await answerText(page), "Well.");
  assert.equal(server.asked.at(-1).messages.length, 3);
  assert.match(await question.locator(".versions").innerText(), /2 \/ 2/);
  await page.locator(".message.assistant").last().getByRole("button", { name: "Delete from here on" }).click();
  await page.locator(".message").nth(3).waitFor({ state: "detached" });
  await page.getByRole("button", { name: "Undo" }).click();
  await page.locator(".message").nth(3).waitFor();
  assert.equal(await answerText(page), "Well.");
  await leave(page);
});

step("who scrolls up stays there; who is at the end follows", async () => {
  const server = await new StandIn().listen();
  let goOn;
  const gate = new Promise(done => (goOn = done));
  const lines = Array.from({ length: 120 }, (_, i) => ({ content: `line ${i}\n\n` }));
  server.answers["long"] = [...lines, () => gate, ...lines, { content: "the end" }];
  const page = await visit(server.url);
  const place = () =>
    page.locator("#scroll").evaluate(e => [Math.round(e.scrollTop), Math.round(e.scrollHeight - e.clientHeight)]);
  await ask(page, "long", { whole: false });
  await page.locator("#log").getByText("line 119").waitFor();
  await sleep(300);
  const [at, end] = await place();
  assert.ok(end - at < 5, `at ${at} of ${end}`);
  await page.locator("#scroll").evaluate(e => (e.scrollTop = 100));
  await page.locator("#latest").waitFor();
  goOn();
  await done(page);
  assert.equal((await place())[0], 100);
  await shot(page, "scrolled");
  await page.locator("#latest").click();
  await page.locator("#latest").waitFor({ state: "hidden" });
  await leave(page);
});

step("conversations are kept, found, renamed, deleted, saved and read", async () => {
  const server = await new StandIn().listen();
  let goOn;
  server.answers["slow"] = () => {
    const gate = new Promise(done => {
      goOn = done;
    });
    return Array.from({ length: 60 }, (_, i) => [{ content: `w${i} ` }, i === 30 ? () => gate : 5]).flat();
  };
  server.answers["needle"] = pieces("a haystack with zanzibar in it");
  const page = await visit(server.url);
  await ask(page, "needle");
  await page.keyboard.press("Control+Shift+O");
  // One conversation is read while another is being written.
  await ask(page, "slow", { whole: false });
  await page.getByText("w3").waitFor();
  await page.locator("#list .open", { hasText: "needle" }).click();
  await page.locator("#log").getByText("zanzibar").waitFor();
  await page.locator("#list .running").waitFor();
  await page.locator("#list .open", { hasText: "slow" }).click();
  await page.locator("#log").getByText("w30").waitFor();
  goOn();
  await done(page);
  await page.locator("#list .running").waitFor({ state: "detached" });
  assert.match(await answerText(page), /^w0 .*w59$/);
  // A reload in the middle of an answer keeps what there was.
  await ask(page, "slow", { whole: false });
  await page.locator(".message.assistant").last().getByText("w30").waitFor();
  await page.reload();
  await page.locator(".message").nth(3).waitFor();
  assert.match(await answerText(page), /^w0 .*w30$/);
  goOn();
  assert.equal(await page.locator("#title").innerText(), "slow");
  await page.keyboard.press("Control+K");
  await page.keyboard.type("zanzi");
  await page.locator("#list .entry", { hasText: "needle" }).waitFor();
  await page.locator("#list .entry", { hasText: "slow" }).waitFor({ state: "detached" });
  await page.locator("#search").fill("");
  await page.locator("#list .entry", { hasText: "slow" }).hover();
  await page.locator("#list .entry", { hasText: "slow" }).getByRole("button", { name: "Rename" }).click();
  await page.keyboard.type("Renamed");
  await page.keyboard.press("Enter");
  await page.locator("#list .entry", { hasText: "Renamed" }).waitFor();
  // Another tab sees it.
  const other = await page.context().newPage();
  await other.goto(server.url);
  await other.locator("#list .entry", { hasText: "Renamed" }).waitFor();
  const saving = page.waitForEvent("download");
  await page.locator("#export").click();
  const file = JSON.parse(readFileSync(await (await saving).path(), "utf8"));
  assert.deepEqual(file.conversations.map(each => each.title).sort(), ["Renamed", "needle"]);
  const markdown = page.waitForEvent("download");
  await page.locator("#download").click();
  assert.match(readFileSync(await (await markdown).path(), "utf8"), /^# Renamed\n\n## Question\n\nslow\n\n## Answer\n\nw0 /);
  await page.locator("#list .current").getByRole("button", { name: "Delete" }).click();
  await other.locator("#list .entry", { hasText: "Renamed" }).waitFor({ state: "detached" });
  await page.locator("#settings-open").click();
  await page.getByRole("button", { name: "Delete all conversations" }).click();
  await page.keyboard.press("Escape");
  await page.locator("#list .entry").first().waitFor({ state: "detached" });
  const saved = `${mkdtempSync(tmpdir() + "/page-")}/c.json`;
  writeFileSync(saved, JSON.stringify(file));
  await page.setInputFiles("#import-file", saved);
  await page.locator("#list .entry").nth(1).waitFor();
  await other.close();
  await leave(page);
});

step("errors say what is wrong, and what to do", async () => {
  const server = await new StandIn().listen();
  server.answers["busy"] = { status: 429, message: "the queue is full", headers: { "retry-after": "3" } };
  server.answers["late"] = [{ content: "half " }, { error: { message: "no token within the deadline" } }];
  server.answers["broken"] = [{ content: "half " }, 50, { break: true }];
  server.answers["cut"] = [{ content: "too long" }, { end: "length" }];
  const page = await visit(server.url, { allowed: /status of (429|401)|ERR_/ });
  for (const [question, words] of [
    ["busy", /the queue is full \(try again in 3 s\)/],
    ["late", /no token within the deadline/],
    ["broken", /./],
  ]) {
    await ask(page, question);
    assert.match(await page.locator(".message").last().locator(".error span").innerText(), words);
  }
  // A question without an answer is asked again with the next one: templates want them in turn.
  assert.equal(server.asked[1].messages[0].content, "busy\n\nlate");
  await shot(page, "errors");
  server.answers["broken"] = pieces("whole");
  await page.getByRole("button", { name: "Try again" }).last().click();
  await done(page);
  assert.equal(await answerText(page), "whole");
  await ask(page, "cut");
  await page.getByText("The answer was cut off").waitFor();
  server.answers["cut"] = [{ content: " **by half**" }];
  await page.getByRole("button", { name: "Go on" }).click();
  await done(page);
  assert.equal(await answerText(page), "too long by half");
  const { messages, continue_final_message: goesOn } = server.asked.at(-1);
  assert.deepEqual([messages.at(-1), goesOn], [{ role: "assistant", content: "too long" }, true]);
  // A server that is gone, and comes back.
  const port = server.server.address().port;
  server.server.closeAllConnections();
  await new Promise(closed => server.server.close(closed));
  await ask(page, "gone");
  assert.equal(await page.locator(".message").last().locator(".error span").innerText(), "The server does not answer");
  await page.locator("#state").click();
  await page.getByText("The server does not answer. It is asked again").waitFor();
  await new Promise(listening => server.server.listen(port, "127.0.0.1", listening));
  await page.locator("#state-text", { hasText: "Ready" }).waitFor();
  await leave(page);
});

step("a key is asked for where one is needed", async () => {
  const server = await new StandIn().listen();
  server.key = "sesame";
  const page = await visit(server.url, { allowed: /status of 401/ });
  await page.locator("#keybox").waitFor();
  await page.locator("#key").fill("wrong");
  await page.keyboard.press("Enter");
  await sleep(500);
  assert.equal(await page.locator("#keybox").isVisible(), true);
  await page.locator("#key").fill("sesame");
  await shot(page, "key");
  await page.keyboard.press("Enter");
  await page.locator("#keybox").waitFor({ state: "hidden" });
  await ask(page, "hello");
  assert.equal(await answerText(page), "Well.");
  await page.reload();
  await page.locator("#state-text", { hasText: "Ready" }).waitFor();
  assert.equal(await page.evaluate(() => localStorage.getItem("brim.key")), null, "kept for good only if asked to");
  await leave(page);
});

step("nothing is asked for a hidden page; a page in view asks when it has to", async () => {
  const server = await new StandIn().listen();
  const page = await visit(server.url);
  await page.locator("#state").click();
  await page.locator("#slots span").first().waitFor();
  const hide = hidden =>
    page.evaluate(hidden => {
      Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
      document.dispatchEvent(new Event("visibilitychange"));
    }, hidden);
  await hide(true);
  await sleep(300);
  const before = server.counts["/status"];
  await sleep(2500);
  assert.equal(server.counts["/status"], before, "asked while hidden");
  await hide(false);
  await sleep(300);
  assert.equal(server.counts["/status"], before + 1, "asked at once when it is seen again");
  await page.locator("#status-close").click();
  await sleep(1200);
  const closed = server.counts["/status"];
  await sleep(3000);
  assert.ok(server.counts["/status"] <= closed + 1, "rarely asked while the figures are closed");
  await leave(page);
});

step("the figures of the server", async () => {
  const server = await new StandIn().listen();
  const page = await visit(server.url);
  await page.locator("#state").click();
  await page.locator("#slots span").first().waitFor();
  await sleep(3300);
  const figures = await page.locator("#figures").innerText();
  for (const words of [
    /stand-in-8b-q4_k_m/,
    /8,192 tokens/,
    /2 waiting/,
    /writing 1,311/,
    /reading 4,096/,
    /80 % reused|79 % reused/,
    /Pages kept for later prompts\s+300/,
    /7 of 12/,
    /Prompts that went on from one\s+22/,
    /65 % right/,
    /weights\s+7\.5 GiB/,
    /Failed\s+1/,
    /400 \/v1\/chat\/completions\s+2/,
    /Lines of log lost\s+4/,
    /First token after, on average\s+0\.42 s/,
  ])
    assert.match(figures, words);
  assert.ok((await page.locator("#out-line").getAttribute("points")).split(" ").length >= 2);
  await fits(page);
  await shot(page, "status-light");
  await page.emulateMedia({ colorScheme: "dark" });
  await shot(page, "status-dark");
  // What the model or the server has not is not there.
  server.status.checkpoints.all = 0;
  delete server.status.speculation;
  await page.locator("#checkpoint-part").waitFor({ state: "hidden" });
  assert.equal(await page.locator("#draft-part").isVisible(), false);
  server.status = {
    version: "0.0.0",
    state: "loading",
    load: { bytes_done: 3e9, bytes_total: 8e9 },
    connections: 1,
    resident_bytes: 9e6,
    facts: FACTS,
  };
  await page.getByText("The model is being loaded: 2.8 GiB of 7.5 GiB").waitFor();
  await shot(page, "loading");
  await leave(page);
});

step("long answers cost no more for being long", async () => {
  const server = await new StandIn().listen();
  const paragraph = i => `Paragraph ${i} with **bold**, \`code\` and [a link](https://example.org/${i}).\n\n`,
    code = "```py\n" + "x = [i for i in range(10)]\n".repeat(4000) + "```\n";
  const rows = "| a | b |\n|---|---|\n" + "| one | *two* |\n".repeat(1500),
    items = "- an item with `code`\n".repeat(1500);
  server.answers["long"] = pieces(
    Array.from({ length: 1500 }, (_, i) => paragraph(i)).join("") + code + rows + "\n" + items + "\n" + "word ".repeat(20000),
    200,
  );
  // What breaks renderers: thousands of openings without an end.
  server.answers["nasty"] = pieces(
    [
      "[".repeat(20000),
      "*a ".repeat(20000),
      "`".repeat(20001),
      "![](".repeat(8000),
      "_*".repeat(8000) + "a" + "*_".repeat(8000),
      "> ".repeat(500) + "deep",
      "- ".repeat(500) + "deep",
      "$$".repeat(4000),
      "\\(".repeat(8000),
      "<a".repeat(8000),
      "|".repeat(8000) + "\n|-|",
      "{".repeat(4000),
      `$${"{".repeat(4000)}$`,
      `$${"\\frac".repeat(900)}$`,
      "x](".repeat(8000),
      "`a ``b ".repeat(5000),
    ].join("\n\n"),
    400,
  );
  const page = await visit(server.url);
  for (const [name, most] of [
    ["long", 9000],
    ["nasty", 9000],
  ]) {
    const begun = Date.now();
    await page.locator("#text").fill(name);
    await page.keyboard.press("Enter");
    await page.locator("#send[aria-label=Send]").waitFor({ timeout: 60000 });
    const took = Date.now() - begun;
    console.log(`  ${name}: ${took} ms`);
    assert.ok(took < most, `${name} took ${took} ms`);
  }
  assert.equal(await page.locator(".message.assistant").first().locator("tbody tr").count(), 1500);
  await leave(page);
});

step("a phone, and the dark", async () => {
  const server = await new StandIn().listen();
  server.answers["show"] = [{ reasoning_content: "Let me think about pages." }, ...pieces(MARKDOWN, 50)];
  const page = await visit(server.url, {
    viewport: { width: 390, height: 844 },
    deviceScaleFactor: 2,
    isMobile: true,
    hasTouch: true,
  });
  await shot(page, "phone-welcome");
  await page.locator("#text").fill("show");
  await page.locator("#send").tap();
  await done(page);
  await fits(page);
  await shot(page, "phone");
  await page.locator("#side-open").tap();
  await page.locator("#list .entry").waitFor();
  await shot(page, "phone-side");
  await page.locator("#list .open").first().tap();
  await page.locator("#side").waitFor({ state: "hidden" });
  await page.locator("#state").tap();
  await page.locator("#slots span").first().waitFor();
  await fits(page);
  await shot(page, "phone-status");
  await page.locator("#status-close").tap();
  await page.emulateMedia({ colorScheme: "dark" });
  await shot(page, "phone-dark");
  const small = await page
    .locator("button:visible")
    .evaluateAll(buttons =>
      buttons.filter(b => b.closest(".bar, .row") && Math.min(b.offsetWidth, b.offsetHeight) < 28).map(b => b.id),
    );
  assert.deepEqual(small, [], "buttons too small for a thumb");
  await leave(page);
  const wide = await visit(server.url, { colorScheme: "dark" });
  await shot(wide, "welcome-dark");
  await ask(wide, "show");
  await shot(wide, "markdown-dark");
  await wide.locator("#settings-open").click();
  await wide.locator("#theme").selectOption("light");
  assert.equal(await wide.evaluate(() => getComputedStyle(document.body).backgroundColor), "rgb(255, 255, 255)");
  await leave(wide);
});

step("by keyboard alone; names for those who do not see; contrast", async () => {
  const server = await new StandIn().listen();
  server.answers["show"] = pieces(MARKDOWN, 50);
  const page = await visit(server.url);
  await page.locator("#state-text", { hasText: "Ready" }).waitFor();
  await ask(page, "show");
  assert.match(await page.locator("#say").innerText(), /^Answer: # Pages/);
  await page.keyboard.press("Control+.");
  await page.locator("#slots span").first().waitFor();
  await page.keyboard.press("Control+.");
  await page.keyboard.press("Control+B");
  await page.locator("#side").waitFor({ state: "hidden" });
  await page.keyboard.press("Control+B");
  await page.keyboard.press("Control+,");
  await page.locator("#settings[open]").waitFor();
  await page.keyboard.press("Escape");
  await page.locator("#title").click();
  await page.locator("body").evaluate(() => document.activeElement.blur());
  await page.keyboard.press("?");
  await page.locator("#help[open]").waitFor();
  await shot(page, "help");
  await page.keyboard.press("Escape");
  await page.keyboard.press("/");
  assert.equal(await page.evaluate(() => document.activeElement.id), "text");
  for (const scheme of ["light", "dark"]) {
    await page.emulateMedia({ colorScheme: scheme });
    assert.deepEqual(await faultsOf(page), [], scheme);
    await page.keyboard.press("Control+.");
    await page.locator("#slots span").first().waitFor();
    assert.deepEqual(await faultsOf(page), [], scheme + ", status");
    await page.keyboard.press("Control+.");
    await page.keyboard.press("Control+,");
    assert.deepEqual(await faultsOf(page), [], scheme + ", settings");
    await page.keyboard.press("Escape");
  }
  await leave(page);
});

step("progress while a prompt is read; files go with a question; several models", async () => {
  const server = await new StandIn().listen();
  server.models = ["alpha", "beta"];
  let goOn;
  const read = new Promise(done => {
    goOn = done;
  });
  server.answers["read\n\nnotes.md:\n````\na ``` fence\n````"] = [
    { prompt_progress: { total: 4000, processed: 1000, cache: 0, time_ms: 10 } },
    () => read,
    { content: "Read." },
  ];
  const page = await visit(server.url);
  await page.locator("select#model").selectOption("beta");
  await page.setInputFiles("#attach-file", [
    { name: "notes.md", mimeType: "text/markdown", buffer: Buffer.from("a ``` fence\n") },
    { name: "p.png", mimeType: "image/png", buffer: Buffer.from([0x89, 0x50, 0xff, 0]) },
  ]);
  await page.getByText("p.png is not attached").waitFor();
  await ask(page, "read", { whole: false });
  await page.getByText("Reading 4,000 tokens").waitFor();
  goOn();
  await done(page);
  assert.equal(await answerText(page), "Read.");
  assert.equal(server.asked[0].model, "beta");
  for (let i = 0; i < 150 && server.statusOf !== "beta"; i++) await page.waitForTimeout(100);
  assert.equal(server.statusOf, "beta", "figures are those of the chosen model");
  assert.equal(await page.locator(".file summary").innerText(), "notes.md");
  await leave(page);
});

step("a chat with the server itself", async () => {
  const page = await visit(brim);
  await page.locator("#state-text", { hasText: "Ready" }).waitFor();
  await shot(page, "welcome-light");
  await page.locator("#settings-open").click();
  await page.locator("#set-temperature").fill("0");
  await page.keyboard.press("Escape");
  await page.locator("#state").click();
  await ask(page, "How do I reserve huge pages?");
  const direct = await (
    await fetch(brim + "/v1/chat/completions", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ temperature: 0, messages: [{ role: "user", content: "How do I reserve huge pages?" }] }),
    })
  ).json();
  const words = text => text.replace(/[^\p{L}\p{N}]+/gu, " ").trim();
  assert.equal(words(await answerText(page)), words(direct.choices[0].message.content));
  assert.match(await page.locator(".figures").innerText(), /tokens( · [\d.]+ tokens\/s)? · first after/);
  await page.locator("#requests dd", { hasText: /[1-9]/ }).first().waitFor();
  await page.reload();
  await page.locator(".message.assistant").waitFor();
  await shot(page, "server");
  await fits(page);
  await leave(page);
});

// ------------------------------------------------------------------------------------------------------------ The run

const only = process.env.ONLY && new RegExp(process.env.ONLY);
let failed = 0;
for (const { name, work } of steps.filter(({ name }) => !only || only.test(name))) {
  try {
    await work();
    console.log("ok: " + name);
  } catch (error) {
    failed++;
    console.log(`FAILED: ${name}\n${error.stack}`);
  }
}
await browser.close();
process.exit(failed ? 1 : 0);
