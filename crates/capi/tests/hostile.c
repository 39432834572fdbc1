/* Calls that a careful program would not make. Each must come back with its code and a text, and leave the
   handles as good as before. The arguments are a sound bundle, and one with a damaged shard. */

#include <shardwright.h>

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void expect(int line, sw_status found, sw_status expected) {
    if (found == expected && (found == SW_STATUS_OK || sw_last_error()[0])) return;
    fprintf(stderr, "hostile.c:%d: expected %d, found %d: %s\n", line, (int)expected, (int)found, sw_last_error());
    exit(1);
}

#define IS(expected, call) expect(__LINE__, (call), SW_STATUS_##expected)
#define HOLDS(what) ((what) ? (void)0 : (fprintf(stderr, "hostile.c:%d: %s\n", __LINE__, #what), exit(1)))

static void paths(const char *sound, const char *damaged) {
    sw_bundle *bundle = NULL;
    IS(ARGUMENT, sw_bundle_open(NULL, &bundle));
    IS(ARGUMENT, sw_bundle_open(sound, NULL));
    IS(BUNDLE, sw_bundle_open("", &bundle));
    IS(IO, sw_bundle_open("/dev/null", &bundle));
    IS(BUNDLE, sw_bundle_open("no such place", &bundle));
    IS(BUNDLE, sw_bundle_open("\xff\xfe", &bundle));
    HOLDS(bundle == NULL);
    /* A damaged shard is opened, and found by the check or by reads that are checked. */
    IS(OK, sw_bundle_open(damaged, &bundle));
    IS(BUNDLE, sw_bundle_check(bundle, NULL, NULL));
    HOLDS(strstr(sw_last_error(), "BLAKE3: expected "));
    sw_runtime *runtime;
    sw_settings settings = {.check_reads = 1};
    IS(BUNDLE, sw_runtime_open(bundle, &settings, &runtime));
    sw_bundle_close(bundle);
    sw_bundle_close(NULL);
    sw_runtime_close(NULL);
}

static int stop_soon(void *user, uint64_t done, uint64_t total) {
    HOLDS(done <= total);
    return ++*(int *)user == 2;
}

static void tensors(const sw_bundle *bundle) {
    size_t count, index;
    sw_tensor tensor;
    sw_place place;
    sw_extent extent;
    int calls = 0;
    IS(STOPPED, sw_bundle_check(bundle, stop_soon, &calls));
    IS(ARGUMENT, sw_bundle_check(NULL, NULL, NULL));
    IS(ARGUMENT, sw_tensor_count(NULL, &count));
    IS(ARGUMENT, sw_tensor_count(bundle, NULL));
    IS(OK, sw_tensor_count(bundle, &count));
    IS(RANGE, sw_tensor_describe(bundle, count, &tensor));
    IS(RANGE, sw_tensor_describe(bundle, SIZE_MAX, &tensor));
    IS(ARGUMENT, sw_tensor_describe(bundle, 0, NULL));
    IS(ARGUMENT, sw_tensor_find(bundle, NULL, 0, 0, &index));
    IS(ARGUMENT, sw_tensor_find(bundle, "\xff", 0, 0, &index));
    IS(RANGE, sw_tensor_find(bundle, "expert.up_proj", 1000, 0, &index));
    IS(RANGE, sw_tensor_find(bundle, "no.such_role", -1, 0, &index));
    IS(OK, sw_tensor_find(bundle, "expert.up_proj", 0, 0, &index));
    IS(OK, sw_tensor_describe(bundle, index, &tensor));
    IS(RANGE, sw_tensor_place(bundle, index, tensor.count, &place));
    IS(RANGE, sw_tensor_place(bundle, count, 0, &place));
    IS(ARGUMENT, sw_tensor_place(bundle, index, 0, NULL));
    IS(RANGE, sw_expert_place(bundle, 0, tensor.count, &extent));
    IS(RANGE, sw_expert_place(bundle, UINT32_MAX, 0, &extent));
    IS(OK, sw_expert_place(bundle, 0, tensor.count - 1, &extent));
    IS(OK, sw_tensor_place(bundle, index, tensor.count - 1, &place));
    HOLDS(!memcmp(&extent.bytes, &place.unit.bytes, sizeof extent.bytes));
    HOLDS(!memcmp(extent.blake3, place.unit.blake3, sizeof extent.blake3) && extent.file == place.unit.file);
    IS(OK, sw_tensor_find(bundle, "norm.final", -1, 0, &index));
    IS(RANGE, sw_tensor_place(bundle, index, 1, &place));
}

static void buffers(const sw_bundle *bundle) {
    size_t index;
    sw_tensor tensor;
    IS(OK, sw_tensor_find(bundle, "expert.up_proj", 0, 0, &index));
    IS(OK, sw_tensor_describe(bundle, index, &tensor));
    size_t rows = tensor.rows, cols = tensor.cols;
    /* Exactly as large as is said, so that a sanitizer sees a value too much. */
    float *x = calloc(cols, sizeof *x), *out = malloc(rows * sizeof *out), *all = malloc(rows * cols * sizeof *all);
    HOLDS(x && out && all);
    IS(OK, sw_decode_rows(bundle, index, 0, 0, rows, all, rows * cols));
    IS(OK, sw_decode_rows(bundle, index, 0, rows, 0, all, 0));
    IS(RANGE, sw_decode_rows(bundle, index, 0, rows, 1, all, rows * cols));
    IS(RANGE, sw_decode_rows(bundle, index, 0, 1, UINT64_MAX, all, rows * cols));
    IS(RANGE, sw_decode_rows(bundle, index, tensor.count, 0, 1, all, cols));
    IS(ARGUMENT, sw_decode_rows(NULL, index, 0, 0, 1, all, cols));
    IS(ARGUMENT, sw_decode_rows(bundle, index, 0, 0, 1, NULL, cols));
    all[0] = 7;
    IS(BUFFER, sw_decode_rows(bundle, index, 0, 0, rows, all, rows * cols - 1));
    HOLDS(all[0] == 7);
    IS(OK, sw_multiply(bundle, index, 0, x, cols, out, rows));
    HOLDS(out[rows - 1] == 0);
    IS(BUFFER, sw_multiply(bundle, index, 0, x, cols, out, rows - 1));
    IS(ARGUMENT, sw_multiply(bundle, index, 0, x, cols - 1, out, rows));
    IS(ARGUMENT, sw_multiply(bundle, index, 0, x, 0, out, rows));
    IS(ARGUMENT, sw_multiply(bundle, index, 0, NULL, cols, out, rows));
    IS(ARGUMENT, sw_multiply(bundle, index, 0, x, cols, x, cols));
    IS(ARGUMENT, sw_multiply(bundle, index, 0, (float *)((char *)x + 1), cols, out, rows));
    IS(ARGUMENT, sw_multiply(bundle, index, 0, x, SIZE_MAX, out, rows));
    IS(RANGE, sw_multiply(bundle, SIZE_MAX, 0, x, cols, out, rows));
    free(x), free(out), free(all);
}

struct texts {
    sw_runtime *runtime;
    char text[256];
    size_t len;
    int stop_after, again;
};

static int keep(void *user, uint32_t token, const char *text, size_t len) {
    struct texts *texts = user;
    HOLDS(text[len] == 0 && (token != SW_NO_TOKEN || len > 0 || texts->len == 0));
    HOLDS(texts->len + len < sizeof texts->text);
    memcpy(texts->text + texts->len, text, len + 1);
    texts->len += len;
    if (texts->again) {
        sw_request request = {.max_tokens = 1};
        IS(BUSY, sw_generate(texts->runtime, "Once", &request, keep, user, NULL));
    }
    return texts->stop_after > 0 && --texts->stop_after == 0;
}

static void generating(const sw_bundle *bundle) {
    sw_settings settings = {.memory = 1}, none = {0};
    sw_runtime *runtime;
    IS(MEMORY, sw_runtime_open(bundle, &settings, &runtime));
    IS(ARGUMENT, sw_runtime_open(bundle, &none, NULL));
    IS(ARGUMENT, sw_runtime_open(NULL, &none, &runtime));
    IS(ARGUMENT, sw_runtime_open(bundle, &(sw_settings){.threads = UINT32_MAX}, &runtime));
    IS(ARGUMENT, sw_runtime_open(bundle, &(sw_settings){.context = UINT32_MAX}, &runtime));
    IS(OK, sw_runtime_open(bundle, &(sw_settings){.context = 16}, &runtime));

    sw_request request = {.max_tokens = 4, .flags = SW_IGNORE_END};
    sw_generated done;
    struct texts first = {.runtime = runtime}, again = {.runtime = runtime, .again = 1};
    IS(ARGUMENT, sw_generate(runtime, NULL, &request, keep, &first, &done));
    IS(ARGUMENT, sw_generate(runtime, "Once", NULL, keep, &first, &done));
    IS(ARGUMENT, sw_generate(runtime, "Once", &request, NULL, &first, &done));
    IS(ARGUMENT, sw_generate(runtime, "Once\xff", &request, keep, &first, &done));
    IS(ARGUMENT, sw_generate(NULL, "Once", &request, keep, &first, &done));
    IS(ARGUMENT, sw_generate(runtime, "Once", &(sw_request){.max_tokens = 1, .temperature = -1}, keep, &first, &done));
    IS(CONTEXT, sw_generate(runtime, "a b c d e f g h i j k l m n o p q r s t u v w x y z", &request, keep, &first, &done));
    HOLDS(first.len == 0);
    IS(OK, sw_generate(runtime, "Once", &request, keep, &first, &done));
    HOLDS(done.tokens == 4 && done.stop == SW_STOP_TOKENS && done.prompt_tokens > 0);
    IS(OK, sw_generate(runtime, "Once", &request, keep, &again, NULL));
    HOLDS(!strcmp(first.text, again.text));

    struct texts stopped = {.stop_after = 2}, full = {0}, one = {0}, two = {0};
    IS(OK, sw_generate(runtime, "Once", &request, keep, &stopped, &done));
    HOLDS(done.tokens == 2 && done.stop == SW_STOP_CALLBACK);
    request.max_tokens = 1000;
    IS(OK, sw_generate(runtime, "Once", &request, keep, &full, &done));
    HOLDS(done.stop == SW_STOP_CONTEXT && done.tokens == 16 - done.prompt_tokens + 1);
    sw_request warm = {.max_tokens = 8, .temperature = 2, .seed = 5, .flags = SW_IGNORE_END};
    IS(OK, sw_generate(runtime, "Once", &warm, keep, &one, NULL));
    IS(OK, sw_generate(runtime, "Once", &warm, keep, &two, NULL));
    HOLDS(!strcmp(one.text, two.text) && strncmp(one.text, full.text, 4));
    sw_runtime_close(runtime);
}

struct work {
    const sw_bundle *bundle;
    sw_runtime *runtime;
    float sum;
    int texts;
};

/* The same values whoever else reads; a text, or the code that says that another is being made. */
static void *work(void *user) {
    struct work *work = user;
    size_t index;
    sw_tensor tensor;
    IS(OK, sw_tensor_find(work->bundle, "expert.down_proj", 0, 0, &index));
    IS(OK, sw_tensor_describe(work->bundle, index, &tensor));
    size_t len = tensor.rows * tensor.cols;
    float *values = malloc(len * sizeof *values);
    HOLDS(values);
    for (uint32_t turn = 0; turn < 20; turn++) {
        IS(OK, sw_decode_rows(work->bundle, index, turn % tensor.count, 0, tensor.rows, values, len));
        for (size_t i = 0; i < len; i++) work->sum += values[i];
        struct texts texts = {0};
        sw_request request = {.max_tokens = 2};
        sw_status status = sw_generate(work->runtime, "Once", &request, keep, &texts, NULL);
        HOLDS(status == SW_STATUS_OK || status == SW_STATUS_BUSY);
        work->texts += status == SW_STATUS_OK;
        /* This thread's own text, whatever the other's is. */
        IS(RANGE, sw_tensor_describe(work->bundle, SIZE_MAX, &tensor));
        HOLDS(strstr(sw_last_error(), "tensor: expected one below"));
        IS(OK, sw_tensor_describe(work->bundle, index, &tensor));
    }
    free(values);
    return NULL;
}

static void threads(sw_bundle *bundle) {
    sw_runtime *runtime;
    IS(OK, sw_runtime_open(bundle, NULL, &runtime));
    struct work works[2] = {{bundle, runtime, 0, 0}, {bundle, runtime, 0, 0}};
    pthread_t other;
    HOLDS(!pthread_create(&other, NULL, work, &works[0]));
    work(&works[1]);
    HOLDS(!pthread_join(other, NULL));
    HOLDS(works[0].sum == works[1].sum && works[0].texts + works[1].texts > 0);
    /* A runtime reads on when its bundle is closed. */
    sw_bundle_close(bundle);
    struct texts texts = {0};
    IS(OK, sw_generate(runtime, "Once", &(sw_request){.max_tokens = 4}, keep, &texts, NULL));
    sw_runtime_close(runtime);
}

int main(int argc, char **argv) {
    HOLDS(argc == 3 && sw_abi() == SW_ABI && sw_version()[0] && sw_last_error()[0] == 0);
    paths(argv[1], argv[2]);
    sw_bundle *bundle;
    IS(OK, sw_bundle_open(argv[1], &bundle));
    tensors(bundle);
    buffers(bundle);
    generating(bundle);
    threads(bundle);
    printf("all refused, all well\n");
    return 0;
}
