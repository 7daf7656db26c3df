// The official JavaScript client against a server with the fake engine: see tests/server/fake_engine.py for its rules.

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import OpenAI, { toFile } from "openai";

const url = process.env.OCTAVO_URL;
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: process.env.OCTAVO_KEY, maxRetries: 0, timeout: 20_000 });
const stranger = client.withOptions({ apiKey: process.env.OCTAVO_OTHER_KEY });

const user = (content) => [{ role: "user", content }];
const chat = (content, more = {}, options = {}) =>
  client.chat.completions.create({ model: "fake", messages: user(content), ...more }, options);
const complete = (prompt, more = {}) => client.completions.create({ model: "fake", prompt, ...more });

async function all(stream) {
  const found = [];
  for await (const one of await stream) found.push(one);
  return found;
}

const text_of = (chunks, index = 0) =>
  chunks
    .flatMap((chunk) => chunk.choices)
    .filter((choice) => choice.index === index)
    .map((choice) => choice.delta?.content ?? choice.text ?? "")
    .join("");

describe("models", () => {
  test("are listed", async () => {
    const models = await all(client.models.list());
    assert.deepEqual(models.map((model) => model.id), ["fake"]);
    assert.equal(models[0].object, "model");
    assert.equal(models[0].owned_by, "octavo");
  });
  test("are looked up", async () => assert.equal((await client.models.retrieve("fake")).id, "fake"));
  test("that are not there", async () =>
    assert.rejects(client.models.retrieve("nowhere/else"), (error) => {
      assert(error instanceof OpenAI.NotFoundError);
      assert.equal(error.code, "model_not_found");
      return true;
    }));
});

describe("chat", () => {
  for (const content of ["hello", "wörld €", "日本語", "👩‍👩‍👧", "two\nlines", "", " spaces "]) {
    test(`whole: ${JSON.stringify(content)}`, async () => {
      const answer = await chat(`say:${content}`);
      assert.equal(answer.choices[0].message.content, content);
      assert.equal(answer.choices[0].message.role, "assistant");
      assert.equal(answer.choices[0].finish_reason, "stop");
      assert.equal(answer.usage.completion_tokens, Buffer.byteLength(content));
    });
    test(`streamed: ${JSON.stringify(content)}`, async () => {
      const chunks = await all(chat(`say:${content}`, { stream: true }));
      assert.equal(text_of(chunks), content);
      assert.equal(chunks[0].choices[0].delta.role, "assistant");
      assert.equal(chunks.at(-1).choices[0].finish_reason, "stop");
    });
  }
  test("several choices", async () => {
    const answer = await chat("say:x", { n: 3 });
    assert.deepEqual(answer.choices.map((choice) => choice.message.content), ["x", "#1 x", "#2 x"]);
  });
  test("several choices, streamed", async () => {
    const chunks = await all(chat("say:x", { n: 2, stream: true }));
    assert.deepEqual([text_of(chunks, 0), text_of(chunks, 1)], ["x", "#1 x"]);
  });
  test("usage comes last and alone", async () => {
    const chunks = await all(chat("say:abc", { stream: true, stream_options: { include_usage: true } }));
    assert.deepEqual(chunks.at(-1).choices, []);
    assert.equal(chunks.at(-1).usage.completion_tokens, 3);
    assert(chunks.slice(0, -1).every((chunk) => chunk.usage === null));
  });
  test("usage all the way", async () => {
    const options = { include_usage: true, continuous_usage_stats: true };
    const chunks = await all(chat("say:abc", { stream: true, stream_options: options }));
    assert(chunks.every((chunk) => chunk.usage.total_tokens > 0));
  });
  for (const [stop, want] of [["o", "hell"], [["x", "l"], "he"], ["nowhere", "hello"]]) {
    test(`stops at ${stop}`, async () => {
      assert.equal((await chat("say:hello", { stop })).choices[0].message.content, want);
      assert.equal(text_of(await all(chat("say:hello", { stop, stream: true }))), want);
    });
  }
  for (const limit of ["max_tokens", "max_completion_tokens"]) {
    test(`${limit} cuts`, async () => {
      const answer = await chat("say:hello", { [limit]: 3 });
      assert.equal(answer.choices[0].message.content, "hel");
      assert.equal(answer.choices[0].finish_reason, "length");
    });
  }
  test("log-probabilities", async () => {
    const answer = await chat("say:ab", { logprobs: true, top_logprobs: 2 });
    const content = answer.choices[0].logprobs.content;
    assert.equal(content.map((one) => one.token).join(""), "ab");
    assert(content.every((one) => one.logprob < 0 && one.top_logprobs.length === 2));
  });
  test("log-probabilities, streamed", async () => {
    const chunks = await all(chat("say:ab", { logprobs: true, stream: true }));
    const tokens = chunks.flatMap((chunk) => chunk.choices[0]?.logprobs?.content ?? []).map((one) => one.token);
    assert.equal(tokens.join(""), "ab");
  });
  test("fields of our own", async () => {
    const answer = await chat("say:ab", { top_k: 5, min_p: 0.1, repetition_penalty: 1.1, return_token_ids: true });
    assert.equal(answer.choices[0].token_ids.length, 2);
  });
  test("parts of text", async () => {
    const messages = [{ role: "user", content: [{ type: "text", text: "say:parts" }] }];
    const answer = await client.chat.completions.create({ model: "fake", messages });
    assert.equal(answer.choices[0].message.content, "parts");
  });
  test("system, developer, assistant", async () => {
    const messages = [
      { role: "system", content: "be" },
      { role: "developer", content: "brief" },
      ...user("hi"),
      { role: "assistant", content: "hello" },
      ...user("say:on"),
    ];
    const answer = await client.chat.completions.create({ model: "fake", messages });
    assert.equal(answer.choices[0].message.content, "on");
  });
  test("with a seed", async () => assert.equal((await chat("!seed", { seed: 77 })).choices[0].message.content, "77"));
  test("the response itself", async () => {
    const { data, response, request_id } = await chat("say:x").withResponse();
    assert.equal(response.status, 200);
    assert.equal(response.headers.get("x-request-id"), request_id);
    assert.equal(data._request_id, request_id);
  });
  test("a request id of one's own", async () => {
    const { request_id } = await chat("say:x", {}, { headers: { "x-request-id": "mine-1" } }).withResponse();
    assert.equal(request_id, "mine-1");
  });
  test("what has no effect is named", async () => {
    const { response } = await chat("say:x", { verbosity: "low" }).withResponse();
    assert.match(response.headers.get("x-octavo-warning"), /verbosity/);
  });
  test("for the record", async () => {
    const more = { user: "u", metadata: { a: "b" }, safety_identifier: "s", prompt_cache_key: "k", store: false };
    assert.equal((await chat("say:x", more)).choices[0].message.content, "x");
  });
  test("a thousand tokens", async () => {
    const long = "abcdefghij".repeat(100);
    assert.equal(text_of(await all(chat(`say:${long}`, { stream: true }))), long);
  });
  test("twenty at once", async () => {
    const answers = await Promise.all(Array.from({ length: 20 }, (_, i) => chat(`say:number ${i}`)));
    answers.forEach((answer, i) => assert.equal(answer.choices[0].message.content, `number ${i}`));
  });
  test("an idempotency key", async () => {
    const headers = { "idempotency-key": `js-${process.pid}` };
    const first = await chat("say:once", {}, { headers });
    const { data, response } = await chat("say:once", {}, { headers }).withResponse();
    assert.equal(data.id, first.id);
    assert.equal(response.headers.get("idempotent-replayed"), "true");
  });
});

describe("the helpers of the client", () => {
  test("a runner collects", async () => {
    const runner = client.chat.completions.stream({ model: "fake", messages: user("say:collected") });
    const seen = [];
    runner.on("content", (delta) => seen.push(delta));
    assert.equal(await runner.finalContent(), "collected");
    assert.equal(seen.join(""), "collected");
    assert.equal((await runner.finalChatCompletion()).choices[0].finish_reason, "stop");
  });
  test("a runner counts", async () => {
    const stream_options = { include_usage: true };
    const runner = client.chat.completions.stream({ model: "fake", messages: user("say:four"), stream_options });
    assert.equal((await runner.totalUsage()).completion_tokens, 4);
  });
  test("a readable stream goes over", async () => {
    const stream = await chat("say:over", { stream: true });
    const there = OpenAI.prototype.constructor && (await import("openai/streaming")).Stream;
    const back = there.fromReadableStream(stream.toReadableStream(), new AbortController());
    assert.equal(text_of(await all(back)), "over");
  });
  test("a stream is split in two", async () => {
    const [left, right] = (await chat("say:two", { stream: true })).tee();
    assert.deepEqual([text_of(await all(left)), text_of(await all(right))], ["two", "two"]);
  });
  test("parsed output", async () => {
    const response_format = { type: "json_object" };
    const answer = await client.chat.completions.parse({ model: "fake", messages: user('say:{"a": 1}'), response_format });
    assert.equal(answer.choices[0].message.content, '{"a": 1}');
  });
});

describe("leaving", () => {
  test("a stream that is broken out of", async () => {
    for await (const _ of await chat("!forever !slow", { stream: true })) break;
    await settled();
  });
  test("a stream that is aborted", async () => {
    const stream = await chat("!forever !slow", { stream: true });
    setTimeout(() => stream.controller.abort(), 100);
    await all(stream);
    await settled();
  });
  test("a whole answer that is aborted", async () => {
    const controller = new AbortController();
    setTimeout(() => controller.abort(), 100);
    await assert.rejects(chat("!wait", {}, { signal: controller.signal }), OpenAI.APIUserAbortError);
    await settled();
  });
  test("a time limit", async () => {
    await assert.rejects(chat("!wait", {}, { timeout: 200 }), OpenAI.APIConnectionTimeoutError);
    await settled();
  });
});

async function settled() {
  for (let tries = 0; tries < 200; tries++) {
    const health = await (await fetch(`${url}/health`)).json();
    if (health.requests === 0 && health.engine.running === 0) return;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  assert.fail("something still runs");
}

describe("errors", () => {
  for (const [name, more, param] of [
    ["temperature", { temperature: -1 }, "temperature"],
    ["top_p", { top_p: 2 }, "top_p"],
    ["n", { n: 129 }, "n"],
    ["stop", { stop: ["a", "b", "c", "d", "e"] }, "stop"],
    ["top_logprobs", { logprobs: true, top_logprobs: 21 }, "top_logprobs"],
    ["logit_bias", { logit_bias: { x: 1 } }, "logit_bias"],
    ["max_tokens", { max_tokens: -1 }, "max_tokens"],
    ["presence_penalty", { presence_penalty: 3 }, "presence_penalty"],
    ["a type", { temperature: "warm" }, "temperature"],
    ["audio", { modalities: ["audio"] }, "modalities"],
  ]) {
    test(`a bad ${name} is named`, async () =>
      assert.rejects(chat("say:x", more), (error) => {
        assert(error instanceof OpenAI.BadRequestError);
        assert.equal(error.param, param);
        assert.equal(error.type, "invalid_request_error");
        assert.equal(error.status, 400);
        assert.ok(error.requestID);
        return true;
      }));
  }
  test("no messages", async () =>
    assert.rejects(client.chat.completions.create({ model: "fake", messages: [] }), OpenAI.BadRequestError));
  test("another model", async () =>
    assert.rejects(chat("say:x", { model: "fakes" }), (error) => {
      assert(error instanceof OpenAI.NotFoundError);
      assert.match(error.message, /did you mean 'fake'/);
      return true;
    }));
  test("a wrong key", async () =>
    assert.rejects(client.withOptions({ apiKey: "wrong-key" }).models.list(), OpenAI.AuthenticationError));
  test("too long a prompt", async () =>
    assert.rejects(chat("x".repeat(5000)), (error) => error.code === "context_length_exceeded"));
  test("an engine that is full", async () =>
    assert.rejects(chat("!busy"), (error) => {
      assert(error instanceof OpenAI.RateLimitError);
      assert.equal(error.code, "overloaded");
      assert.equal(error.headers.get("retry-after"), "8");
      return true;
    }));
  test("an answer that fails", async () => assert.rejects(chat("!error"), OpenAI.InternalServerError));
  test("a stream that fails", async () =>
    assert.rejects(all(chat("!error", { stream: true })), (error) => {
      assert(error instanceof OpenAI.APIError);
      assert.match(error.message, /NaN/);
      return true;
    }));
  test("what a second try cannot mend is not tried again", async () => {
    const began = Date.now();
    await assert.rejects(client.withOptions({ maxRetries: 3 }).chat.completions.create({ model: "fake", messages: user("!error") }));
    assert(Date.now() - began < 3000);
  });
  test("a deadline", async () => assert.rejects(chat("!wait", { deadline_ms: 100 }), (error) => error.status === 504));
});

describe("completions", () => {
  test("whole", async () => assert.equal((await complete("say:text")).choices[0].text, "text"));
  test("streamed", async () => assert.equal(text_of(await all(complete("say:text", { stream: true }))), "text"));
  test("several prompts", async () => {
    const answer = await complete(["say:a", "say:b"]);
    assert.deepEqual(answer.choices.map((choice) => choice.text), ["a", "b"]);
  });
  test("tokens", async () => assert.equal((await complete([72, 105])).choices[0].text.length, 2));
  test("echo", async () => assert.equal((await complete("say:x", { echo: true })).choices[0].text, "say:xx"));
  test("scoring", async () => {
    const answer = await complete("say:x", { echo: true, max_tokens: 0, logprobs: 1 });
    assert.equal(answer.choices[0].logprobs.tokens.join(""), "say:x");
  });
  test("best of", async () => assert.equal((await complete("say:x", { best_of: 2 })).choices.length, 1));
  test("sixteen tokens unless asked", async () => {
    const answer = await complete(`say:${"y".repeat(40)}`);
    assert.equal(answer.choices[0].text, "y".repeat(16));
    assert.equal(answer.choices[0].finish_reason, "length");
  });
});

describe("tools", () => {
  const tools = [{ type: "function", function: { name: "add", parameters: { type: "object", properties: {} } } }];
  const call = 'say:<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>';
  test("that are not used", async () => assert.equal((await chat("say:no", { tools })).choices[0].message.content, "no"));
  test("that are called, where the template knows how", async () => {
    const answer = await chat(call, { tools });
    const message = answer.choices[0].message;
    assert.ok(message.tool_calls?.[0]?.function.name === "add" || message.content.includes("tool_call"));
  });
  test("without a name", async () =>
    assert.rejects(chat("say:x", { tools: [{ type: "function", function: {} }] }), OpenAI.BadRequestError));
  test("another choice than there is", async () =>
    assert.rejects(
      chat("say:x", { tools, tool_choice: { type: "function", function: { name: "sub" } } }),
      OpenAI.BadRequestError,
    ));
});

describe("responses", () => {
  const respond = (input, more = {}) => client.responses.create({ model: "fake", input, ...more });
  test("whole", async () => {
    const answer = await respond("say:hello");
    assert.equal(answer.output_text, "hello");
    assert.equal(answer.status, "completed");
    assert.equal(answer.usage.output_tokens, 5);
  });
  test("streamed", async () => {
    const events = await all(respond("say:hello", { stream: true }));
    const deltas = events.filter((event) => event.type === "response.output_text.delta").map((event) => event.delta);
    assert.equal(deltas.join(""), "hello");
    assert.equal(events[0].type, "response.created");
    assert.equal(events.at(-1).type, "response.completed");
    assert.deepEqual(events.map((event) => event.sequence_number), events.map((_, i) => i));
  });
  test("the client's own collector", async () => {
    const runner = client.responses.stream({ model: "fake", input: "say:collected" });
    assert.equal((await runner.finalResponse()).output_text, "collected");
  });
  test("items and instructions", async () => {
    const answer = await respond([{ role: "user", content: "say:items" }], { instructions: "be" });
    assert.equal(answer.output_text, "items");
    assert.equal(answer.instructions, "be");
  });
  test("cut", async () => {
    const answer = await respond("say:hello", { max_output_tokens: 2 });
    assert.equal(answer.status, "incomplete");
    assert.equal(answer.incomplete_details.reason, "max_output_tokens");
  });
  test("kept, read again, gone on from, listed, forgotten", async () => {
    const first = await respond("say:one");
    assert.equal((await client.responses.retrieve(first.id)).output_text, "one");
    const second = await respond("say:two", { previous_response_id: first.id });
    assert.equal(second.previous_response_id, first.id);
    assert(second.usage.input_tokens > first.usage.input_tokens);
    const items = await all(client.responses.inputItems.list(first.id));
    assert.equal(items[0].role, "user");
    await client.responses.delete(first.id);
    await assert.rejects(client.responses.retrieve(first.id), OpenAI.NotFoundError);
  });
  test("not kept", async () => {
    const answer = await respond("say:x", { store: false });
    await assert.rejects(client.responses.retrieve(answer.id), OpenAI.NotFoundError);
  });
  test("of another tenant", async () => {
    const answer = await respond("say:mine");
    await assert.rejects(stranger.responses.retrieve(answer.id), OpenAI.NotFoundError);
  });
  test("counted", async () => {
    const counted = await client.responses.inputTokens.count({ model: "fake", input: "abc" });
    assert.equal(counted.input_tokens, 7);
  });
  test("that fail in a stream", async () => {
    const events = [];
    await assert.rejects(async () => {
      for await (const event of await respond("!error", { stream: true })) events.push(event.type);
      if (events.includes("error") || events.includes("response.failed")) throw new Error("told by an event");
    });
  });
  test("run in the background are refused", async () => assert.rejects(respond("say:x", { background: true }), OpenAI.BadRequestError));
});

describe("embeddings", () => {
  const embed = (input, more = {}) => client.embeddings.create({ model: "fake", input, ...more });
  for (const encoding_format of [undefined, "float", "base64"]) {
    test(`as ${encoding_format}`, async () => {
      const { data } = await embed("text", encoding_format ? { encoding_format } : {});
      const vector = data[0].embedding;
      if (encoding_format === "base64") assert.equal(typeof vector, "string");
      else assert.equal(vector.length, 8);
    });
  }
  test("in order", async () => {
    const { data } = await embed(["a", "b", "c"]);
    assert.deepEqual(data.map((one) => one.index), [0, 1, 2]);
    assert.notDeepEqual(data[0].embedding, data[1].embedding);
  });
  test("shorter", async () => assert.equal((await embed("a", { dimensions: 3 })).data[0].embedding.length, 3));
  test("too long", async () => assert.rejects(embed("a", { dimensions: 9 }), OpenAI.BadRequestError));
});

describe("files", () => {
  const make = async (content = "{}\n", name = "näme.jsonl") =>
    client.files.create({ file: await toFile(Buffer.from(content), name), purpose: "user_data" });
  test("come back as they went", async () => {
    const file = await make("contents");
    assert.equal(file.filename, "näme.jsonl");
    assert.equal(await (await client.files.content(file.id)).text(), "contents");
  });
  test("are listed over several pages", async () => {
    const made = [await make(), await make(), await make()].map((file) => file.id);
    const found = (await all(client.files.list({ limit: 2 }))).map((file) => file.id);
    assert(made.every((id) => found.includes(id)));
  });
  test("are looked at and deleted", async () => {
    const file = await make();
    assert.equal((await client.files.retrieve(file.id)).status, "processed");
    assert.equal((await client.files.delete(file.id)).deleted, true);
    await assert.rejects(client.files.retrieve(file.id), OpenAI.NotFoundError);
  });
  test("of another tenant", async () => {
    const file = await make();
    await assert.rejects(stranger.files.content(file.id), OpenAI.NotFoundError);
  });
  test("of no purpose", async () =>
    assert.rejects(
      client.files.create({ file: await toFile(Buffer.from("x"), "x"), purpose: "fine-tune" }),
      OpenAI.BadRequestError,
    ));
});

describe("batches", () => {
  const lines = (count) =>
    Array.from({ length: count }, (_, i) => ({
      custom_id: `line-${i}`,
      method: "POST",
      url: "/v1/chat/completions",
      body: { model: "fake", messages: user(`say:answer ${i}`) },
    }));
  const begin = async (rows, endpoint = "/v1/chat/completions") => {
    const content = rows.map((row) => JSON.stringify(row)).join("\n");
    const file = await client.files.create({ file: await toFile(Buffer.from(content), "in.jsonl"), purpose: "batch" });
    return client.batches.create({ input_file_id: file.id, endpoint, completion_window: "24h" });
  };
  const ended = async (id) => {
    for (;;) {
      const batch = await client.batches.retrieve(id);
      if (["completed", "failed", "cancelled", "expired"].includes(batch.status)) return batch;
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  };
  test("run to their end", async () => {
    const batch = await ended((await begin(lines(5))).id);
    assert.equal(batch.status, "completed");
    assert.deepEqual(batch.request_counts, { total: 5, completed: 5, failed: 0 });
    const output = await (await client.files.content(batch.output_file_id)).text();
    const rows = output.trim().split("\n").map((line) => JSON.parse(line));
    assert.deepEqual(rows.map((row) => row.custom_id).sort(), lines(5).map((row) => row.custom_id));
    for (const row of rows)
      assert.equal(row.response.body.choices[0].message.content, `answer ${row.custom_id.slice(5)}`);
  });
  test("with a line that is wrong fail", async () => {
    const batch = await ended((await begin([...lines(1), { ...lines(1)[0] }])).id);
    assert.equal(batch.status, "failed");
    assert.equal(batch.errors.data[0].line, 2);
  });
  test("are cancelled", async () => {
    const rows = lines(3).map((row) => ({ ...row, body: { ...row.body, messages: user("!wait") } }));
    const batch = await begin(rows);
    await client.batches.cancel(batch.id);
    assert.equal((await ended(batch.id)).status, "cancelled");
  });
  test("are listed", async () => {
    const batch = await begin(lines(1));
    const found = await all(client.batches.list({ limit: 1 }));
    assert(found.some((one) => one.id === batch.id));
    await ended(batch.id);
  });
  test("of another tenant", async () => {
    const batch = await begin(lines(1));
    await assert.rejects(stranger.batches.retrieve(batch.id), OpenAI.NotFoundError);
    await ended(batch.id);
  });
});
