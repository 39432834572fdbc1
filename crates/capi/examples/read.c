/* What a bundle holds, where an expert lies, some values, a product, and a text.

   cc -std=c11 -I crates/capi/include crates/capi/examples/read.c \
      target/release/libshardwright_capi.a -lpthread -ldl -lm -o read
   ./read model.bundle 'Once upon a time' */

#include <shardwright.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

/* Every call gives a code; the text of the last failure says what was expected and what was found. */
static void check(sw_status status) {
    if (status != SW_STATUS_OK) {
        fprintf(stderr, "read: %s (code %d)\n", sw_last_error(), (int)status);
        exit(2);
    }
}

static int print_text(void *user, uint32_t token, const char *text, size_t len) {
    (void)user, (void)token;
    fwrite(text, 1, len, stdout);
    return fflush(stdout); /* not 0 stops */
}

static void print_span(const char *what, sw_span span) {
    printf("  %s at %" PRIu64 ", %" PRIu64 " bytes\n", what, span.offset, span.len);
}

/* A shard is one read; the parts of each of its tensors are known before. */
static void print_place(const sw_bundle *bundle, size_t index, const sw_tensor *tensor) {
    sw_place place;
    check(sw_tensor_place(bundle, index, tensor->expert, &place));
    printf("%s of expert %u: %s\n", tensor->role, tensor->expert, place.unit.file);
    print_span("unit", place.unit.bytes);
    print_span("weight", place.weight);
    print_span("scales", place.scales);
    print_span("biases", place.biases);
}

/* The last row of a tensor, and that row times its own values: the first is memory for all rows. */
static void print_values(const sw_bundle *bundle, size_t index, const sw_tensor *tensor) {
    size_t rows = tensor->rows, cols = tensor->cols;
    float *row = malloc(cols * sizeof *row), *product = malloc(rows * sizeof *product);
    if (!row || !product) exit(2);
    check(sw_decode_rows(bundle, index, tensor->expert, rows - 1, 1, row, cols));
    check(sw_multiply(bundle, index, tensor->expert, row, cols, product, rows));
    printf("last row:");
    for (size_t i = 0; i < cols && i < 8; i++) printf(" %.9g", row[i]);
    printf("\nits square: %.9g\n", product[rows - 1]);
    free(row), free(product);
}

int main(int argc, char **argv) {
    if (argc < 2 || sw_abi() != SW_ABI) return 2;
    sw_bundle *bundle;
    check(sw_bundle_open(argv[1], &bundle));
    check(sw_bundle_check(bundle, NULL, NULL));

    size_t count, chosen = 0;
    check(sw_tensor_count(bundle, &count));
    for (size_t i = 0; i < count; i++) {
        sw_tensor tensor;
        check(sw_tensor_describe(bundle, i, &tensor));
        printf("%s, layer %d, x%u: %" PRIu64 " x %" PRIu64 ", %s\n", tensor.role, (int)tensor.layer,
               tensor.count, tensor.rows, tensor.cols, tensor.label);
        if (tensor.encoding == SW_ENCODING_AFFINE) chosen = i; /* an expert's, where there are some */
    }
    sw_tensor tensor;
    check(sw_tensor_describe(bundle, chosen, &tensor));
    print_place(bundle, chosen, &tensor);
    print_values(bundle, chosen, &tensor);

    if (argc > 2) {
        sw_runtime *runtime;
        sw_settings settings = {.memory = 1u << 30, .context = 256};
        sw_request request = {.max_tokens = 12}; /* greedy; .temperature and .seed sample */
        check(sw_runtime_open(bundle, &settings, &runtime));
        check(sw_generate(runtime, argv[2], &request, print_text, NULL, NULL));
        printf("\n");
        sw_runtime_close(runtime);
    }
    sw_bundle_close(bundle);
    return 0;
}
