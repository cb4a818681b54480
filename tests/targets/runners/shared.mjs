// What the job's texts, chats and prompts become in transformers.js: the same lines run in Node
// and in a browser. Neither dtype nor file names are given: the bundle's config.json says them.

export async function answer(transformers, name, device, job) {
  const { env, AutoTokenizer, AutoModelForCausalLM, Tensor } = transformers;
  const tokenizer = await AutoTokenizer.from_pretrained(name);
  const model = await AutoModelForCausalLM.from_pretrained(name, { device });

  const plain = (ids) => Array.from(ids, Number);
  const texts = job.texts.map((text) => plain(tokenizer.encode(text)));
  const chats = job.chats.map((messages) =>
    plain(tokenizer.apply_chat_template(messages, {
      add_generation_prompt: true, tokenize: true, return_tensor: false, return_dict: false,
    })));
  const answers = [];
  for (const prompt of job.prompts) {
    const shape = [1, prompt.length];
    const made = await model.generate({
      input_ids: new Tensor("int64", BigInt64Array.from(prompt, BigInt), shape),
      attention_mask: new Tensor("int64", new BigInt64Array(prompt.length).fill(1n), shape),
      do_sample: false,
      max_new_tokens: job.new_tokens,
    });
    answers.push(plain(made.tolist()[0].slice(prompt.length)));
  }
  return { versions: { "@huggingface/transformers": env.version }, texts, chats, answers };
}
