// The only file that knows Python. Arguments are checked here, and the interpreter lock is released while kernels run.

#include <nanobind/nanobind.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstring>
#include <string>

#include "array.h"
#include "kernels.h"
#include "packed.h"
#include "program.h"
#include "sampling.h"

namespace nb = nanobind;
using namespace octavo::cpu;

namespace {

[[noreturn]] void refuse(const std::string& text) { throw nb::value_error(text.c_str()); }

template <class T, size_t N>
std::string shape(const Dense<T, N>& array) {
  std::string text = "[";
  for (size_t i = 0; i < N; ++i) text += (i ? ", " : "") + std::to_string(array.shape[i]);
  return text + "]";
}

const Kernels& kernels_named(const std::string& name) {
  if (name == emulated_kernels()->name) return *emulated_kernels();
  std::string known;
  for (const Kernels* kernels : usable_kernels()) {
    if (name == kernels->name) return *kernels;
    known += std::string(known.empty() ? "" : ", ") + kernels->name;
  }
  refuse("instruction set '" + name + "' does not run here; these do: " + known);
}

Number number_named(const std::string& name) {
  if (name == "float32") return Number::f32;
  if (name == "bfloat16") return Number::bf16;
  refuse("number must be float32 or bfloat16, got '" + name + "'");
}

Format format_named(const std::string& name) {
  if (name == "float32") return Format::f32;
  if (name == "bfloat16") return Format::bf16;
  if (name == "int8") return Format::int8;
  if (name == "int4" || name == "w4a16") return Format::int4;
  refuse("format must be float32, bfloat16, int8, int4 or w4a16, got '" + name + "'");
}

Finish finish_named(const std::string& name) {
  if (name == "store") return Finish::store;
  if (name == "add") return Finish::add;
  if (name == "gate") return Finish::gate;
  refuse("finish must be store, add or gate, got '" + name + "'");
}

// --- weights ----------------------------------------------------------------------------------------------------

std::shared_ptr<Packed> make_packed(const std::string& isa, const std::string& format, size_t num_out, size_t num_in, size_t num_parts,
                                    bool has_bias, size_t group) {
  if (num_out == 0 || num_in == 0) refuse("a weight has at least one output and one input");
  if (num_parts != 1 && (num_parts != 2 || num_out % 2)) refuse("num_parts is 1, or 2 of equal size");
  if (group != 32 && group != 64 && group != 128) refuse("group must be 32, 64 or 128, got " + std::to_string(group));
  return std::make_shared<Packed>(kernels_named(isa), format_named(format), num_out, num_in, num_parts, has_bias, group,
                                  format != "w4a16");
}

template <class T>
bool fill(Packed& packed, size_t part, size_t first, const Dense<const T, 2>& rows, size_t num_threads) {
  if (part >= packed.num_parts() || first % kPanel || first + rows.shape[0] > packed.part_out() || rows.shape[1] != packed.weight().num_in)
    refuse("fill: rows " + shape(rows) + " at output " + std::to_string(first) + " of part " + std::to_string(part) +
           " do not fit a weight of " + std::to_string(packed.num_parts()) + " parts [" + std::to_string(packed.part_out()) + ", " +
           std::to_string(packed.weight().num_in) + "], in steps of 16 outputs");
  nb::gil_scoped_release unlocked;
  Pool pool(num_threads);
  return packed.fill(pool, part, first, rows.data, sizeof(T) == 2 ? Number::bf16 : Number::f32, rows.shape[0]);
}

template <class T>
void fill_bias(Packed& packed, size_t part, size_t first, const Dense<const T, 1>& bias) {
  if (!packed.weight().bias || part >= packed.num_parts() || first + bias.shape[0] > packed.part_out())
    refuse("fill_bias: bias " + shape(bias) + " at output " + std::to_string(first) + " does not fit");
  packed.fill_bias(part, first, bias.data, sizeof(T) == 2 ? Number::bf16 : Number::f32, bias.shape[0]);
}

void read_weight(const Packed& packed, size_t part, size_t first, const Dense<float, 2>& out) {
  if (part >= packed.num_parts() || first + out.shape[0] > packed.part_out() || out.shape[1] != packed.weight().num_in)
    refuse("read: rows " + shape(out) + " at output " + std::to_string(first) + " are not all there");
  packed.read(part, first, out.shape[0], out.data);
}

// --- programs ---------------------------------------------------------------------------------------------------

size_t known(const Program& program, size_t buffer, size_t num_buffers) {
  if (buffer >= num_buffers) refuse("no buffer " + std::to_string(buffer));
  return program.width(buffer);
}

// A program with what only its builder needs to know.
struct Recorder {
  Program program;
  Sampling sampling;
  Number number;
  size_t num_heads, num_buffers = 0;
  std::vector<nb::object> kept;  // arrays that operations point into

  Recorder(const std::string& isa, size_t num_threads, const std::string& name, size_t heads, size_t kv_heads, size_t head_dim,
           size_t block_tokens, float eps)
      : program(kernels_named(isa), num_threads, number_named(name), heads, {kv_heads, head_dim, block_tokens, number_named(name)}, eps),
        sampling(program.kernels(), program.pool()),
        number(number_named(name)),
        num_heads(heads) {
    if (!num_threads || !kv_heads || !heads || heads % kv_heads) refuse("heads must be a multiple of kv_heads, threads at least 1");
    if (!head_dim || head_dim % 2) refuse("head_dim must be even, got " + std::to_string(head_dim));
    if (!block_tokens || (block_tokens > kPanel && block_tokens % kPanel))
      refuse("block_tokens must be below 16 or a multiple of it, got " + std::to_string(block_tokens));
  }

  size_t width(size_t buffer) const { return known(program, buffer, num_buffers); }
  size_t qkv_width() const { return (num_heads + 2 * program.kv().num_kv_heads) * program.kv().head_dim; }

  size_t buffer(size_t width) {
    if (!width) refuse("a buffer has at least one column");
    ++num_buffers;
    return program.buffer(width);
  }

  void embed(std::shared_ptr<Packed> table, size_t to) {
    if (table->weight().num_in != width(to) || table->weight().format == Format::int4 || table->num_parts() != 1)
      refuse("embed: the table must be as wide as the buffer, of one part, and not int4");
    num_tokens = table->weight().num_out;
    program.embed(std::move(table), to);
  }

  const void* vector(nb::object array, size_t size) {
    if (array.is_none()) return nullptr;
    const void* data = nullptr;
    size_t found = 0;
    if (number == Number::bf16) {
      const auto view = nb::cast<Dense<const Bf16, 1>>(array);
      data = view.data, found = view.shape[0];
    } else {
      const auto view = nb::cast<Dense<const float, 1>>(array);
      data = view.data, found = view.shape[0];
    }
    if (found != size) refuse("want a vector of " + std::to_string(size) + ", got " + std::to_string(found));
    kept.push_back(std::move(array));
    return data;
  }

  void norm(size_t from, nb::object weight, size_t to) {
    if (width(from) != width(to)) refuse("norm: buffers differ in width");
    program.norm(from, vector(std::move(weight), width(from)), to);
  }

  void linear(std::shared_ptr<Packed> weight, size_t from, size_t to, const std::string& finish, size_t column) {
    const Finish how = finish_named(finish);
    const Weight& w = weight->weight();
    const size_t out = how == Finish::gate ? w.num_out / 2 : w.num_out;
    if ((weight->num_parts() == 2) != (how == Finish::gate)) refuse("linear: gate takes a weight of two parts, others one");
    if (w.num_in != width(from) || column + out > width(to))
      refuse("linear: a weight [" + std::to_string(w.num_out) + ", " + std::to_string(w.num_in) + "] does not fit buffers of " +
             std::to_string(width(from)) + " and " + std::to_string(width(to)) + " columns");
    if (from == to) refuse("linear: cannot write where it reads");
    program.linear(std::move(weight), from, to, column, how);
  }

  void rope(size_t qkv, size_t layer, nb::object q_norm, nb::object k_norm) {
    if (width(qkv) != qkv_width()) refuse("rope: the buffer must hold all heads of q, k and v");
    const size_t dim = program.kv().head_dim;
    program.rope(qkv, layer, vector(std::move(q_norm), dim), vector(std::move(k_norm), dim));
    num_layers = layer + 1 > num_layers ? layer + 1 : num_layers;
  }

  void attention(size_t qkv, size_t layer, int64_t window, size_t to) {
    if (width(qkv) != qkv_width() || width(to) != num_heads * program.kv().head_dim) refuse("attention: buffers do not fit the heads");
    if (window < 0) refuse("attention: window must be at least 1, or 0 for none");
    program.attention(qkv, layer, window, to);
    is_unbounded |= window == 0;
    widest_window = std::max(widest_window, window);
    num_layers = layer + 1 > num_layers ? layer + 1 : num_layers;
  }

  void head(size_t from, nb::object norm, std::shared_ptr<Packed> weight) {
    if (weight->weight().num_in != width(from) || weight->num_parts() != 1) refuse("head: the weight does not fit the buffer");
    head_width = width(from);
    program.head(from, vector(std::move(norm), width(from)), std::move(weight));
  }

  size_t num_layers = 0, num_tokens = 0, head_width = 0;
  int64_t widest_window = 1;
  bool is_unbounded = false;

  template <class T>
  void write(size_t buffer, const Dense<const T, 2>& rows) {
    if (sizeof(T) != program.kv().item() || rows.shape[1] != width(buffer)) refuse("write: rows do not fit the buffer");
    program.reserve(rows.shape[0]);
    std::memcpy(program.data(buffer), rows.data, rows.size() * sizeof(T));
  }

  template <class T>
  void read(size_t buffer, const Dense<T, 2>& rows) {
    if (sizeof(T) != program.kv().item() || rows.shape[1] != width(buffer) || rows.shape[0] > program.num_rows_reserved())
      refuse("read: rows do not fit the buffer");
    std::memcpy(rows.data, program.data(buffer), rows.size() * sizeof(T));
  }

  template <class T>
  void run(const Dense<const int64_t, 1>& tokens, const Dense<const int64_t, 1>& positions, const Dense<const int64_t, 1>& slots,
           const Dense<const int32_t, 2>& tables, const Dense<const int32_t, 1>& starts, const Dense<const int32_t, 1>& counts,
           const Dense<const float, 2>& cos, const Dense<const float, 2>& sin, const Dense<T, 3>& arena) {
    const KvLayout& kv = program.kv();
    const size_t rows = tokens.shape[0], seqs = tables.shape[0];
    if (positions.shape[0] != rows || slots.shape[0] != rows || starts.shape[0] != seqs || counts.shape[0] != seqs)
      refuse("run: want tokens, positions and slots [T], tables [S, N], starts and counts [S]");
    if (cos.shape[1] != kv.head_dim / 2 || sin.shape[1] != cos.shape[1] || sin.shape[0] != cos.shape[0])
      refuse("run: want cos and sin [positions, D / 2]");
    if (sizeof(T) != kv.item() || arena.shape[2] != kv.block_items() || arena.shape[0] < num_layers)
      refuse("run: want an arena [layers, blocks, " + std::to_string(kv.block_items()) + "], got " + shape(arena));
    size_t total = 0;
    for (size_t s = 0; s < seqs; ++s) {
      const int64_t start = starts.data[s], count = counts.data[s], end = start + count;
      if (start < 0 || count < 0 || end > static_cast<int64_t>(tables.shape[1] * kv.block_tokens))
        refuse("run: sequence " + std::to_string(s) + " has positions " + std::to_string(start) + " .. " + std::to_string(end - 1) +
               ", its table holds " + std::to_string(tables.shape[1]) + " blocks");
      total += static_cast<size_t>(count);
    }
    // Blocks that some layer reads must be there; entries that every window has passed may be anything.
    const int64_t block = static_cast<int64_t>(kv.block_tokens), num_blocks = static_cast<int64_t>(arena.shape[1]);
    for (size_t s = 0; s < seqs; ++s) {
      const int64_t low = is_unbounded ? 0 : std::max<int64_t>(0, starts.data[s] - widest_window + 1);
      const int32_t* table = tables.data + s * tables.shape[1];
      for (int64_t n = low / block; n * block < starts.data[s] + counts.data[s]; ++n)
        if (table[n] < 0 || table[n] >= num_blocks)
          throw nb::index_error(("run: a block id lies outside the arena: " + std::to_string(table[n]) + " of " +
                                 std::to_string(num_blocks) + ", in sequence " + std::to_string(s))
                                    .c_str());
    }
    if (total != rows) refuse("run: counts add up to " + std::to_string(total) + " rows, there are " + std::to_string(rows));
    const int64_t num_slots = static_cast<int64_t>(arena.shape[1] * kv.block_tokens);
    for (size_t t = 0; t < rows; ++t) {
      if (num_tokens && (tokens.data[t] < 0 || tokens.data[t] >= static_cast<int64_t>(num_tokens)))
        throw nb::index_error("run: a token is no row of the embedding");
      if (slots.data[t] < 0 || slots.data[t] >= num_slots) throw nb::index_error("run: a slot lies outside the arena");
      if (positions.data[t] < 0 || positions.data[t] >= static_cast<int64_t>(cos.shape[0]))
        throw nb::index_error("run: a position has no angles");
    }
    const Batch batch{tokens.data, positions.data, slots.data, tables.data, starts.data, counts.data, rows, seqs, tables.shape[1],
                      cos.data, sin.data};
    const Arena where{arena.data, arena.shape[0], arena.shape[1]};
    nb::gil_scoped_release unlocked;
    program.run(batch, where);
  }

  template <class T>
  void hidden(const Dense<T, 2>& out) {
    if (!program.vocab() || sizeof(T) != program.kv().item() || out.shape[0] != program.last_rows() || out.shape[1] != head_width)
      refuse("hidden: want out [T, E] of a program with a head, got " + shape(out));
    nb::gil_scoped_release unlocked;
    program.hidden(out.data);
  }

  template <class T>
  void logits(const Dense<const T, 2>& hidden, const Dense<float, 2>& out) {
    if (!program.vocab() || sizeof(T) != program.kv().item() || hidden.shape[1] != head_width || out.shape[0] != hidden.shape[0] ||
        out.shape[1] != program.vocab())
      refuse("logits: want hidden [N, E] and out [N, V] of a program with a head, got " + shape(hidden) + " and " + shape(out));
    nb::gil_scoped_release unlocked;
    program.logits(hidden.data, hidden.shape[0], out.data);
  }

  const float* row_of(const Dense<const float, 2>& logits, size_t row) {
    if (row >= logits.shape[0]) throw nb::index_error(("no row " + std::to_string(row) + " in logits " + shape(logits)).c_str());
    return logits.data + row * logits.shape[1];
  }

  nb::list greedy(const Dense<const float, 2>& logits) {
    std::vector<const float*> rows;
    for (size_t row = 0; row < logits.shape[0]; ++row) rows.push_back(row_of(logits, row));
    std::vector<Greedy> found;
    {
      nb::gil_scoped_release unlocked;
      found = sampling.greedy(rows, logits.shape[1]);
    }
    nb::list choices;
    for (const Greedy& one : found)
      choices.append(nb::make_tuple(one.token, 0.0 - one.log_mass, static_cast<int32_t>(one.problem)));
    return choices;
  }

  using DrawTuple = std::tuple<size_t, double, int64_t, double, double, uint64_t>;

  std::vector<int32_t> draw(const Dense<const float, 2>& logits, const std::vector<DrawTuple>& asked) {
    std::vector<Draw> draws;
    for (const auto& [row, temperature, top_k, top_p, min_p, key] : asked) {
      if (!(temperature > 0.0) || !(top_p > 0.0) || !(min_p >= 0.0 && min_p <= 1.0))
        refuse("draw: want temperature and top_p above 0 and min_p in 0 .. 1, got " + std::to_string(temperature) + ", " +
               std::to_string(top_p) + " and " + std::to_string(min_p));
      draws.push_back({row_of(logits, row), logits.shape[1], static_cast<float>(temperature), top_k, top_p, min_p, key});
    }
    nb::gil_scoped_release unlocked;
    return sampling.draw(draws);
  }

  nb::list describe(const Dense<const float, 2>& logits, const std::vector<std::tuple<size_t, size_t, size_t>>& asked) {
    std::vector<Asked> wanted;
    for (const auto& [row, token, num_top] : asked) {
      if (token >= logits.shape[1]) throw nb::index_error(("describe: no token " + std::to_string(token) + " in logits " + shape(logits)).c_str());
      wanted.push_back({row_of(logits, row), token, num_top});
    }
    std::vector<Described> found;
    {
      nb::gil_scoped_release unlocked;
      found = sampling.describe(wanted, logits.shape[1]);
    }
    nb::list all;
    for (const Described& one : found) {
      nb::list top;
      for (const auto& [token, logprob] : one.top) top.append(nb::make_tuple(token, logprob));
      all.append(nb::make_tuple(static_cast<int32_t>(one.problem), one.logprob, one.rank, nb::tuple(top)));
    }
    return all;
  }
};

std::vector<std::string> usable() {
  std::vector<std::string> names;
  for (const Kernels* kernels : usable_kernels()) names.emplace_back(kernels->name);
  return names;
}

}  // namespace

NB_MODULE(_cpu, m) {
  m.doc() = "Kernels for processors: raw pointers inside, shapes and types checked at the door.";
  m.def("features", &features, "Instruction sets of this processor that its operating system lets programs use.");
  m.def("instruction_sets", &usable, "Names of the kernels that run here, best first.");

  nb::class_<Packed>(m, "Weight", "A weight [num_out, num_in] in panels.")
      .def(nb::new_(&make_packed), nb::arg("isa"), nb::arg("format"), nb::arg("num_out"), nb::arg("num_in"), nb::arg("num_parts") = 1,
           nb::arg("has_bias") = false, nb::arg("group") = 64)
      .def("fill", &fill<Bf16>, nb::arg("part"), nb::arg("first"), nb::arg("rows"), nb::arg("num_threads") = 1,
           "Pack rows [n, num_in] as outputs first .. first + n - 1 of a part; False when one was not finite.")
      .def("fill", &fill<float>, nb::arg("part"), nb::arg("first"), nb::arg("rows"), nb::arg("num_threads") = 1)
      .def("fill_bias", &fill_bias<Bf16>, nb::arg("part"), nb::arg("first"), nb::arg("bias"))
      .def("fill_bias", &fill_bias<float>, nb::arg("part"), nb::arg("first"), nb::arg("bias"))
      .def("read", &read_weight, nb::arg("part"), nb::arg("first"), nb::arg("out"), "The weight as products see it, in float32.")
      .def_prop_ro("nbytes", &Packed::num_bytes)
      .def_prop_ro("num_out", [](const Packed& p) { return p.weight().num_out; })
      .def_prop_ro("num_in", [](const Packed& p) { return p.weight().num_in; });

  nb::class_<Recorder>(m, "Program", "A forward pass, recorded once and replayed for every step.")
      .def(nb::init<const std::string&, size_t, const std::string&, size_t, size_t, size_t, size_t, float>(), nb::arg("isa"),
           nb::arg("num_threads"), nb::arg("number"), nb::arg("num_heads"), nb::arg("num_kv_heads"), nb::arg("head_dim"),
           nb::arg("block_tokens"), nb::arg("eps"))
      .def("buffer", &Recorder::buffer, nb::arg("width"))
      .def("embed", &Recorder::embed, nb::arg("table"), nb::arg("to"))
      .def("norm", &Recorder::norm, nb::arg("source"), nb::arg("weight"), nb::arg("to"))
      .def("linear", &Recorder::linear, nb::arg("weight"), nb::arg("source"), nb::arg("to"), nb::arg("finish") = "store", nb::arg("column") = 0)
      .def("rope", &Recorder::rope, nb::arg("qkv"), nb::arg("layer"), nb::arg("q_norm").none(), nb::arg("k_norm").none())
      .def("attention", &Recorder::attention, nb::arg("qkv"), nb::arg("layer"), nb::arg("window"), nb::arg("to"))
      .def("head", &Recorder::head, nb::arg("source"), nb::arg("norm"), nb::arg("weight"))
      .def("reserve", [](Recorder& r, size_t rows) { r.program.reserve(rows); }, nb::arg("num_rows"))
      .def_prop_ro("workspace_bytes", [](const Recorder& r) { return r.program.workspace_bytes() + r.sampling.num_bytes(); })
      .def_prop_ro("seconds", [](const Recorder& r) { return r.program.seconds(); }, "Spent in each kind of operation so far.")
      .def_prop_ro("block_items", [](const Recorder& r) { return r.program.kv().block_items(); })
      .def("write", &Recorder::write<Bf16>, nb::arg("buffer"), nb::arg("rows"))
      .def("write", &Recorder::write<float>, nb::arg("buffer"), nb::arg("rows"))
      .def("read", &Recorder::read<Bf16>, nb::arg("buffer"), nb::arg("rows"))
      .def("read", &Recorder::read<float>, nb::arg("buffer"), nb::arg("rows"))
      .def("run", &Recorder::run<Bf16>, nb::arg("tokens"), nb::arg("positions"), nb::arg("slots"), nb::arg("tables"), nb::arg("starts"),
           nb::arg("counts"), nb::arg("cos"), nb::arg("sin"), nb::arg("arena"))
      .def("run", &Recorder::run<float>, nb::arg("tokens"), nb::arg("positions"), nb::arg("slots"), nb::arg("tables"), nb::arg("starts"),
           nb::arg("counts"), nb::arg("cos"), nb::arg("sin"), nb::arg("arena"))
      .def("hidden", &Recorder::hidden<Bf16>, nb::arg("out"), "Final hidden states [T, E] of the last run.")
      .def("hidden", &Recorder::hidden<float>, nb::arg("out"))
      .def("logits", &Recorder::logits<Bf16>, nb::arg("hidden"), nb::arg("out"), "Logits [N, V] of final hidden states [N, E].")
      .def("logits", &Recorder::logits<float>, nb::arg("hidden"), nb::arg("out"))
      .def("greedy", &Recorder::greedy, nb::arg("logits"),
           "Per row (token, log-probability, problem): 0 none, 1 NaN, 2 +inf, 3 nothing but -inf.")
      .def("draw", &Recorder::draw, nb::arg("logits"), nb::arg("draws"),
           "Per (row, temperature, top_k, top_p, min_p, key) a token, or -1 where a logit is NaN or all are -inf.")
      .def("describe", &Recorder::describe, nb::arg("logits"), nb::arg("asked"),
           "Per (row, token, num_top): (problem, log-probability, rank, ((token, log-probability) ..)).");
}
