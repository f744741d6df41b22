// A GGUF file in llama.cpp for serve.py: reads {prompts, count} a line, and writes how many tokens it generated.
import {createInterface} from "node:readline";
import {createRequire} from "node:module";
import {pathToFileURL} from "node:url";

const [installed, modelPath, ...numbers] = process.argv.slice(2);
const [threads, sequences, contextSize] = numbers.map(Number);
const {getLlama, LlamaLogLevel} = await import(pathToFileURL(createRequire(installed).resolve("node-llama-cpp")));
const llama = await getLlama({gpu: false, build: "never", progressLogs: false, logLevel: LlamaLogLevel.error, maxThreads: threads});
const model = await llama.loadModel({modelPath});
const context = await model.createContext({contextSize, sequences, threads});

async function generate(tokens, count) {
    const sequence = context.getSequence();
    let generated = 0;
    for await (const _ of sequence.evaluate(tokens, {temperature: 0, yieldEogToken: true}))
        if (++generated === count)
            break;
    sequence.dispose();
    return generated;
}

for await (const line of createInterface({input: process.stdin})) {
    const {prompts, count} = JSON.parse(line);
    const generated = await Promise.all(prompts.map((tokens) => generate(tokens, count)));
    console.log(generated.reduce((sum, one) => sum + one));
}
await llama.dispose();
