// Shardwright bundles for programs in other languages: docs/ENGINES.md has examples, docs/FORMAT.md the bytes.
//
// Results: a call gives a code, and writes its results only with SW_STATUS_OK. What went wrong is a line of text
// that sw_last_error gives to the same thread. Null pointers, numbers that nothing has and buffers that are too
// small are refused; a defect of the library is a code too, and ends no process. Memory that cannot be had does.
//
// Threads: any number of them may use a bundle at once. A runtime works for one call at a time, from whichever
// thread; another call meanwhile, of its own callback too, gives SW_STATUS_BUSY and changes nothing. Nobody may
// use a handle while it is closed, or later.
//
// Texts are UTF-8 and end with a zero; paths are whatever bytes the system has. Structs and memory for results are
// the caller's, pointers inside structs belong to the bundle. Nothing here is freed but by the two closing calls.

#ifndef SHARDWRIGHT_H
#define SHARDWRIGHT_H

#include <stddef.h>
#include <stdint.h>

// Changes with every change of a function or struct here. Compare it with `sw_abi()`.
#define SW_ABI 2

// Stands for a token where a callback is told of something else.
#define SW_NO_TOKEN UINT32_MAX

// A request's flag: nothing is put around the prompt, which is whole as it is, such as a filled-in chat template.
#define SW_RAW_PROMPT 1

// A request's flag: the text goes on behind a token that would end it.
#define SW_IGNORE_END 2

// What a call came to. Only with `SW_STATUS_OK` has it written its results.
typedef enum {
  // Done.
  SW_STATUS_OK = 0,
  // A pointer that must not be null is, or a value means nothing.
  SW_STATUS_ARGUMENT = 1,
  // An index, expert, layer or row that the bundle does not have.
  SW_STATUS_RANGE = 2,
  // The caller's memory is too small for the result. Nothing was written to it.
  SW_STATUS_BUFFER = 3,
  // The operating system refused to open or read a file.
  SW_STATUS_IO = 4,
  // The path holds no bundle, or one that is damaged.
  SW_STATUS_BUNDLE = 5,
  // The memory budget is below the least that works, which the text says.
  SW_STATUS_MEMORY = 6,
  // The prompt is longer than the context.
  SW_STATUS_CONTEXT = 7,
  // The runtime is at work in another call: of another thread, or the one whose callback this is.
  SW_STATUS_BUSY = 8,
  // A callback asked to stop.
  SW_STATUS_STOPPED = 9,
  // The model or its tokenizer cannot be run, or an earlier failure left the runtime unusable.
  SW_STATUS_MODEL = 10,
  // A defect of the library. Close the handle; others are not affected.
  SW_STATUS_INTERNAL = 11,
} sw_status;

// A separately readable piece of the model.
typedef enum {
  // The token embedding.
  SW_UNIT_EMBEDDING = 0,
  // A layer without its routed experts.
  SW_UNIT_LAYER = 1,
  // A routed expert of a layer.
  SW_UNIT_EXPERT = 2,
  // The final norm, and the head unless it is the embedding.
  SW_UNIT_HEAD = 3,
  // A vision tower, where the bundle has one.
  SW_UNIT_VISION = 4,
  // Layers that predict further tokens, where the bundle has them.
  SW_UNIT_MTP = 5,
  // What chooses the positions that a sparse attention sees, where the bundle has it.
  SW_UNIT_INDEXER = 6,
} sw_unit;

// How values are stored; docs/FORMAT.md has the bytes of each.
typedef enum {
  // Floats of 32 bits.
  SW_ENCODING_F32 = 0,
  // Floats of 16 bits, IEEE 754.
  SW_ENCODING_F16 = 1,
  // Floats of 16 bits, bfloat16.
  SW_ENCODING_BF16 = 2,
  // Codes with a scale and a bias for each group of columns: `scale * code + bias`.
  SW_ENCODING_AFFINE = 3,
  // Codes of a trellis with computed values.
  SW_ENCODING_TRELLIS = 4,
  // Blocks of codes and scales as GGUF files have them; the label says which.
  SW_ENCODING_GGML = 5,
  // Floats of 4 or 8 bits with a scale for each group of columns; the label says which.
  SW_ENCODING_MINIFLOAT = 6,
  // Powers of two, a byte for the exponent and 127: scales only.
  SW_ENCODING_E8M0 = 7,
} sw_encoding;

// Why a text ended.
typedef enum {
  // With a token that ends texts.
  SW_STOP_END_OF_TEXT = 0,
  // All tokens that were asked for are there.
  SW_STOP_TOKENS = 1,
  // The context is full.
  SW_STOP_CONTEXT = 2,
  // The callback asked for it.
  SW_STOP_CALLBACK = 3,
} sw_stop;

// An open bundle. Nothing in it changes, so any number of threads may use it at once.
typedef struct sw_bundle sw_bundle;

// A model that generates text. Calls take turns: one that comes while another is at work is refused.
typedef struct sw_runtime sw_runtime;

// Told how many of all bytes were read, on the thread that called; not 0 to stop. It must return: neither an
// exception nor `longjmp` may leave it.
typedef int (*sw_progress)(void *user, uint64_t done, uint64_t total);

// A tensor: a matrix of `rows` outputs by `cols` inputs; a vector is one row.
//
// Tensors of experts are listed once for the `count` experts of a layer that are stored alike: all of them in most
// bundles. The texts live as long as the bundle is open.
typedef struct {
  // What it is for, as docs/FORMAT.md calls it: `attention.q_proj`, `expert.up_proj`.
  const char *role;
  // Its name in the checkpoint; `{expert}` stands for the expert's number.
  const char *source;
  // How it is stored, to be shown: `q4 g64 bf16`.
  const char *label;
  // Rows.
  uint64_t rows;
  // Columns.
  uint64_t cols;
  // The unit that it lies in.
  sw_unit unit;
  // Its layer, from 0; -1 outside of layers.
  int32_t layer;
  // Units that have it: 1, or experts of the layer.
  uint32_t count;
  // The first of those experts; 0 for what is no expert's.
  uint32_t expert;
  // How it is stored.
  sw_encoding encoding;
  // Bits of a code; 0 for floats.
  uint32_t bits;
  // Columns of a group; 0 unless affine or in blocks.
  uint32_t group_size;
  // Bits of a state; 0 unless trellis.
  uint32_t state_bits;
  // Type of scales and biases; of floats their own.
  sw_encoding scale_type;
} sw_tensor;

// Bytes of a file.
typedef struct {
  // First byte, from the start of the file.
  uint64_t offset;
  // Bytes.
  uint64_t len;
} sw_span;

// Where a unit lies: a shard, which one read gives.
typedef struct {
  // Path of the file; lives as long as the bundle is open.
  const char *file;
  // Its bytes; the offset is a multiple of the bundle's alignment.
  sw_span bytes;
  // BLAKE3 of those bytes.
  uint8_t blake3[32];
} sw_extent;

// Where a tensor of a unit lies. All offsets are from the start of the unit's file; the parts follow each other.
typedef struct {
  // The unit.
  sw_extent unit;
  // Values or packed codes, `[rows, row_bytes]`.
  sw_span weight;
  // Scales, `[rows, cols / group_size]`, or one per row of a trellis; empty for floats.
  sw_span scales;
  // Biases, as many; empty unless affine.
  sw_span biases;
} sw_place;

// How to run a model; all zeros for what each says of 0.
typedef struct {
  // Bytes that the library may take for the model, its tokenizer and threads included, and 20 MiB for what a program
  // takes besides; 0 for no limit. Below what the whole model takes, weights are read again as they are needed.
  uint64_t memory;
  // Threads that compute; 0 for one per core. No result depends on it.
  uint32_t threads;
  // Positions of prompt and text together that there is room for; 0 for 4096, or fewer if the model knows fewer.
  uint32_t context;
  // Not 0: every unit is held to its hash when it is first read.
  uint32_t check_reads;
} sw_settings;

// What to generate; all zeros but `max_tokens` for the likeliest token each time.
typedef struct {
  // Tokens, at most.
  uint32_t max_tokens;
  // `SW_RAW_PROMPT`, `SW_IGNORE_END`, both or neither.
  uint32_t flags;
  // Start of the random numbers; the same seed gives the same text.
  uint64_t seed;
  // Logits are divided by it; 0 takes the likeliest token.
  float temperature;
  // Only the likeliest tokens that together reach this probability; 0 or 1 for all.
  float top_p;
  // Only so many of the likeliest tokens; 0 for all.
  uint32_t top_k;
} sw_request;

// Told each token of a text with the text that it completes, on the thread that called: `len` bytes of UTF-8, and a
// zero behind them. A character of several tokens comes with the last of these, so a text may be empty; what is left at the end
// comes with `SW_NO_TOKEN`, and so does an empty text after each piece of a long prompt. Not 0 to stop. It must
// return: neither an exception nor `longjmp` may leave it.
typedef int (*sw_on_token)(void *user, uint32_t token, const char *text, size_t len);

// What was generated.
typedef struct {
  // Tokens of the prompt, those around it included.
  uint32_t prompt_tokens;
  // Tokens of the text, the one that ended it not included.
  uint32_t tokens;
  // Why it ended.
  sw_stop stop;
} sw_generated;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// The `SW_ABI` that the library was made with: its header is another one unless they are equal.
uint32_t sw_abi(void);

// The library's version, such as `0.1.0`.
const char *sw_version(void);

// What went wrong in the latest call of this thread that failed, in one line; empty before the first. It names the
// file, the tensor, what was expected and what was found. Valid until this thread's next call.
const char *sw_last_error(void);

// Opens the bundle in the directory `path`. Its manifest is read and checked whole (structure, shapes, its own
// hash), and the sizes of its files; `sw_bundle_check` reads the files.
// `path` is a text that ends with a zero.
sw_status sw_bundle_open(const char *path,
                         sw_bundle **bundle);

// Closes a bundle, or nothing where it is null. No other call may use it then or later; runtimes opened from it go on.
void sw_bundle_close(sw_bundle *bundle);

// Reads every file of the bundle and holds it to its size and its BLAKE3. `progress` may be null; it is told
// after each 4 MiB, and `SW_STATUS_STOPPED` comes back where it asks to stop.
sw_status sw_bundle_check(const sw_bundle *bundle,
                          sw_progress progress,
                          void *user);

// How many tensors are listed; those of experts count once for a layer.
sw_status sw_tensor_count(const sw_bundle *bundle, size_t *count);

// Describes tensor number `index`, from 0.
sw_status sw_tensor_describe(const sw_bundle *bundle, size_t index, sw_tensor *tensor);

// The number of the tensor with a role, such as `expert.up_proj`, in a layer; -1 for what is in none. `expert` is 0 for
// what is no expert's. Of the parts besides the text model, which have many tensors of one role, it is the first.
// `role` is a text that ends with a zero.
sw_status sw_tensor_find(const sw_bundle *bundle,
                         const char *role,
                         int32_t layer,
                         uint32_t expert,
                         size_t *index);

// Where a tensor lies, of expert number `expert`; 0 for what is no expert's.
sw_status sw_tensor_place(const sw_bundle *bundle, size_t tensor, uint32_t expert, sw_place *place);

// Where an expert lies: one read gives all its tensors.
sw_status sw_expert_place(const sw_bundle *bundle,
                          uint32_t layer,
                          uint32_t expert,
                          sw_extent *extent);

// Writes the values of `rows` rows of a tensor, from `first_row` on, row after row: `rows * cols` floats, for which
// `out_len` says how much room there is. They are those that the runtime computes with, to the bit. The file is read
// anew by each call, and not held to its hash.
// `out` is memory for `out_len` floats that nobody else uses meanwhile.
sw_status sw_decode_rows(const sw_bundle *bundle,
                         size_t tensor,
                         uint32_t expert,
                         uint64_t first_row,
                         uint64_t rows,
                         float *out,
                         size_t out_len);

// Multiplies rows of activations with a tensor: `x` is `[n, cols]`, `out` becomes `[n, rows]`, with `n` whatever
// `x_len` is of `cols`. It is the product of the runtime: the sums have one order, so that results have the same
// bits on every CPU and whatever rows go together. The file is read anew by each call, on the calling thread.
// `x` is `x_len` floats, `out` memory for `out_len` that nobody else uses meanwhile.
sw_status sw_multiply(const sw_bundle *bundle,
                      size_t tensor,
                      uint32_t expert,
                      const float *x,
                      size_t x_len,
                      float *out,
                      size_t out_len);

// Opens the bundle's model to generate text: reads its tokenizer, and what stays in memory. `settings` may be null,
// for zeros. The bundle may be closed while the runtime is open.
sw_status sw_runtime_open(const sw_bundle *bundle,
                          const sw_settings *settings,
                          sw_runtime **runtime);

// Closes a runtime, or nothing where it is null. No other call may use it then or later.
void sw_runtime_close(sw_runtime *runtime);

// Generates the text that follows `prompt`, which each call computes from its beginning. `generated` may be null.
// A text that the callback stopped is no failure: `stop` says so.
// `prompt` is a text that ends with a zero.
sw_status sw_generate(const sw_runtime *runtime,
                      const char *prompt,
                      const sw_request *request,
                      sw_on_token on_token,
                      void *user,
                      sw_generated *generated);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* SHARDWRIGHT_H */
