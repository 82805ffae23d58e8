// Reads [{task, folder, input, options}] as JSON from standard input, and prints what transformers.js makes of each.
//
// Needs `npm install @huggingface/transformers` in a folder whose node_modules NODE_PATH names.

const { env, pipeline } = require("@huggingface/transformers");

env.allowRemoteModels = false;
env.allowLocalModels = true;

async function main() {
  const asked = JSON.parse(require("fs").readFileSync(0, "utf-8"));
  const found = [];
  for (const { task, folder, input, options } of asked) {
    env.localModelPath = require("path").dirname(folder);
    const pipe = await pipeline(task, require("path").basename(folder), { dtype: "fp32" });
    const output = await (Array.isArray(input) ? pipe(...input, options) : pipe(input, options));
    found.push(output.dims ? { dims: output.dims, data: Array.from(output.data) } : output);
    await pipe.dispose();
  }
  console.log(JSON.stringify(found));
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
