// transformers.js in Node on the CPU: node node.mjs NODE_MODULES_FOLDER JOB RESULT

import fs from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import { pathToFileURL } from "node:url";

import { answer } from "./shared.mjs";

const [, , folder, jobFile, resultFile] = process.argv;
const modules = path.join(folder, "node_modules");
const main = path.join(modules, "@huggingface/transformers/dist/transformers.node.mjs");
const transformers = await import(pathToFileURL(main).href);
const { version } = createRequire(main)("onnxruntime-node/package.json");

const job = JSON.parse(fs.readFileSync(jobFile, "utf8"));
transformers.env.allowRemoteModels = false;
transformers.env.localModelPath = path.dirname(job.bundle);
const result = await answer(transformers, path.basename(job.bundle), job.device ?? "cpu", job);
result.versions["onnxruntime-node"] = version;
result.versions.node = process.version;
fs.writeFileSync(resultFile, JSON.stringify(result));
