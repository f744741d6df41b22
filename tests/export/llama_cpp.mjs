// Runs a GGUF file in llama.cpp. JSON in and out: {model, texts, count} -> [{tokens, text, greedy, logprobs}, ...] with the
// tokens of every text, the text that they are, those that follow greedily, and the log-probability of every token to
// come next.
import {readFileSync} from "node:fs";
import {createRequire} from "node:module";
import {pathToFileURL} from "node:url";

const {installed, model: modelPath, texts, count} = JSON.parse(readFileSync(0, "utf8"));
const {getLlama, LlamaLogLevel} = await import(pathToFileURL(createRequire(installed).resolve("node-llama-cpp")));
const llama = await getLlama({gpu: false, build: "never", progressLogs: false, logLevel: LlamaLogLevel.error});
const model = await llama.loadModel({modelPath});
const context = await model.createContext({
    contextSize: 64,
    threads: 1,
    flashAttention: false,
    experimentalKvCacheKeyType: "F32",
    experimentalKvCacheValueType: "F32",
});
const results = [];
for (const text of texts) {
    const tokens = model.tokenize(text, false);
    if (model.tokens.shouldPrependBosToken)
        tokens.unshift(model.tokens.bos);
    const sequence = context.getSequence();
    const everyToken = {probabilities: true, options: {temperature: 1, topK: 0, topP: 1, minP: 0}};
    const evaluated = await sequence.controlledEvaluate([...tokens.slice(0, -1), [tokens.at(-1), {generateNext: everyToken}]]);
    const logprobs = [...evaluated.at(-1).next.probabilities].map(([token, value]) => [token, Math.log(value)]);
    await sequence.clearHistory();
    const greedy = [];
    for await (const token of sequence.evaluate(tokens, {temperature: 0, yieldEogToken: true})) {
        greedy.push(token);
        if (greedy.length === count)
            break;
    }
    sequence.dispose();
    results.push({tokens, text: model.detokenize(tokens), greedy, logprobs});
}
console.log(JSON.stringify(results));
await llama.dispose();
