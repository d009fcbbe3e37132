// The npm package `ai` with `@ai-sdk/openai-compatible`: an answer, its events, a tool, an object, a context that is too long.
//
// Usage: ai_session.mjs BASE_URL NODE_MODULES; the server has SmolLM2-135M-Instruct.
import assert from "node:assert";
import { createRequire } from "node:module";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [base, modules] = process.argv.slice(2);
const require = createRequire(join(modules, "x.js"));
const load = async (name) => import(pathToFileURL(require.resolve(name)));
const { generateText, streamText, generateObject, tool, stepCountIs, isStepCount, APICallError } = await load("ai");
const { createOpenAICompatible } = await load("@ai-sdk/openai-compatible");
const { z } = await load("zod");
globalThis.AI_SDK_LOG_WARNINGS = false;

const provider = createOpenAICompatible({ name: "brim", baseURL: base + "/v1", apiKey: "none", includeUsage: true, supportsStructuredOutputs: true });
const model = provider("any");
const common = { model, temperature: 0, maxRetries: 0, maxOutputTokens: 48 };
const prompt = "What is the capital of France?";

const whole = await generateText({ ...common, prompt });
assert(whole.text.length > 20 && whole.usage.outputTokens > 3, JSON.stringify(whole.usage));

const stream = streamText({ ...common, prompt });
const pieces = [];
for await (const piece of stream.textStream) pieces.push(piece);
assert(pieces.length > 3 && pieces.join("").slice(0, 12) === whole.text.slice(0, 12), pieces.join(""));
assert.strictEqual((await stream.usage).outputTokens, whole.usage.outputTokens);

const cities = [];
const weather = tool({
  description: "The weather of a city.",
  inputSchema: z.object({ city: z.enum(["Bonn", "Jena"]) }),
  execute: async ({ city }) => (cities.push(city), `sunny in ${city}`),
});
const call = await generateText({ ...common, prompt: "How is the weather?", tools: { weather }, toolChoice: "required" });
assert.strictEqual(call.finishReason, "tool-calls");
assert.strictEqual(call.toolResults[0].output, `sunny in ${cities[0]}`);
const after = await generateText({
  ...common,
  messages: [{ role: "user", content: "How is the weather?" }, ...call.response.messages],
  tools: { weather },
  toolChoice: "none",
});
assert(after.text.length > 0 && cities.length === 1);

const streamed = streamText({ ...common, prompt: "How is the weather?", tools: { weather }, toolChoice: { type: "tool", toolName: "weather" } });
assert.strictEqual((await streamed.toolCalls)[0].toolName, "weather");
assert.strictEqual(cities.length, 2);

const { object } = await generateObject({ ...common, prompt: "How large?", schema: z.object({ unit: z.enum(["MiB", "GiB"]), pages: z.number().int().min(1).max(9) }) });
assert(["MiB", "GiB"].includes(object.unit) && object.pages >= 1 && object.pages <= 9, JSON.stringify(object));

await assert.rejects(generateText({ ...common, prompt: "word ".repeat(9000) }), (error) => {
  assert(APICallError.isInstance(error) && error.statusCode === 400 && error.message.includes("maximum context length"), String(error));
  return true;
});
console.log("ai: an answer, its events, a tool, an object, a context that is too long");
