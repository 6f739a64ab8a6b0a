-- What a notebook's Markdown and HTML mean, whatever they are written as: shared by the readers of
-- the PDF (reader.lua) and of the site (tools/site/reader.lua).

local markup = {}

-- GitHub's dialect: what the notebook looks like there is what it should look like elsewhere.
local MARKDOWN = "gfm+tex_math_dollars+footnotes-yaml_metadata_block"
local HTML = "html+tex_math_dollars"  -- as MathJax shows a table's cells in Jupyter
local MATH_ENVIRONMENTS = {
  align = "aligned", ["align*"] = "aligned", aligned = "aligned",
  equation = false, ["equation*"] = false,
  gather = "gathered", ["gather*"] = "gathered",
  multline = "gathered", ["multline*"] = "gathered",
}
local WITH_IDENTIFIER = { "Header", "Div", "Span", "Table", "Figure", "CodeBlock", "Code", "Link", "Image" }

-- TeX that MathJax accepts and texmath does not, or translates badly.
function markup.prepare_tex(tex)
  tex = tex:gsub("\\!", ""):gsub("\\bigm", "\\big"):gsub("\\Bigm", "\\Big")
  tex = tex:gsub("\\biggm", "\\bigg"):gsub("\\|", "\\Vert ")
  local name, body = tex:match("^%s*\\begin{(%a+%*?)}(.*)\\end{%a+%*?}%s*$")
  local inner = name and MATH_ENVIRONMENTS[name]
  if inner then
    tex = "\\begin{" .. inner .. "}" .. body .. "\\end{" .. inner .. "}"
  elseif inner == false then
    tex = body
  end
  return tex
end

-- MathJax shows \begin{align} without dollars; Markdown would eat its backslashes.
local function wrap_environments(text)
  text = "\n" .. text .. "\n"  -- a table row needs its end of line
  for name in pairs(MATH_ENVIRONMENTS) do
    local tag = name:gsub("%*", "%%*")
    text = text:gsub("\n(%s*\\begin{" .. tag .. "}.-\\end{" .. tag .. "})[ \t]*%f[\n\0]", function(block)
      return "\n$$" .. block .. "$$"
    end)
  end
  return text
end

local function convert_raw_block(block)
  if block.format == "html" then
    return pandoc.read(block.text, HTML).blocks
  end
end

-- Line breaks, images and anchors are kept; other tags inside a paragraph mean nothing here.
local function convert_raw_inline(inline)
  if inline.format ~= "html" then return nil end
  if inline.text:match("^<br%s*/?>") then return pandoc.LineBreak() end
  if inline.text:match("^<img%s") then
    return pandoc.utils.blocks_to_inlines(pandoc.read(inline.text, "html").blocks)
  end
  local anchor = inline.text:match("^<%a+.-%s[iI][dD]%s*=%s*[\"']?([^\"'%s>]+)")
    or inline.text:match("^<[aA].-%s[nN][aA][mM][eE]%s*=%s*[\"']?([^\"'%s>]+)")
  if anchor then return pandoc.Span({}, { id = anchor }) end
end

-- Blocks of one part of a notebook. Every part is parsed by itself, so that an open fence or tag
-- cannot swallow the next cell.
function markup.read_blocks(part)
  local html = part.kind == "html"
  local text = html and part.text or wrap_environments(part.text)
  local document = pandoc.read(text, html and HTML or MARKDOWN)
  -- Raw pieces first: they become elements that later functions must see.
  return document:walk({ RawBlock = convert_raw_block, RawInline = convert_raw_inline }).blocks
end

-- Path of an image's file; nil where the image is of another host, or has no address.
function markup.image_path(image, part, base)
  local source = image.src
  if source == "" or source:match("^%a+://") or source:match("^//") or source:match("^data:") then
    return nil
  end
  local attached = source:match("^attachment:(.*)$")
  local path
  if attached then
    path = part.attachments[attached]
  else
    path = pandoc.path.is_absolute(source) and source or pandoc.path.join({ base, source })
  end
  local stream = path and io.open(path, "rb")
  if not stream then
    error("missing image: " .. source .. " in cell " .. part.cell)
  end
  stream:close()
  return path
end

local function is_number(cell)
  local text = pandoc.utils.stringify(cell.contents):gsub("%s", "")
  return text == "" or text:match("^[%+%-−±%d%.,%%eE%[%]%(%)–/]+$") ~= nil
    or text == "NaN" or text == "nan" or text == "inf"
end

-- pandas writes the name of the index into a second row of the head: one row is enough.
local function merge_head(head)
  local first, second = head.rows[1], head.rows[2]
  if #head.rows ~= 2 then return end
  for i, cell in ipairs(second.cells) do
    local empty = pandoc.utils.stringify(cell.contents) == ""
    if (i == 1) == empty then return end
  end
  if pandoc.utils.stringify(first.cells[1].contents) ~= "" then return end
  first.cells[1].contents = second.cells[1].contents
  head.rows = { first }
end

-- HTML tables carry no alignment that pandoc understands: numbers to the right, words to the left.
function markup.align_table(tbl)
  merge_head(tbl.head)
  local numeric = {}
  for _, body in ipairs(tbl.bodies) do
    for _, row in ipairs(body.body) do
      for i, cell in ipairs(row.cells) do
        if numeric[i] ~= false then numeric[i] = is_number(cell) end
      end
    end
  end
  for i, spec in ipairs(tbl.colspecs) do
    if spec[1] == pandoc.AlignDefault then
      tbl.colspecs[i] = { numeric[i] and pandoc.AlignRight or pandoc.AlignLeft, spec[2] }
    end
  end
end

-- The target of a link as headings are named: Jupyter keeps capitals, GitHub does not.
local function loose(identifier)
  return (identifier:lower():gsub("%%(%x%x)", function(hex) return string.char(tonumber(hex, 16)) end)
    :gsub("[%s_]", "-"):gsub("[^%w%-\128-\255]", ""):gsub("^%-+", ""):gsub("%-+$", ""))
end

local function for_each_identifier(action)
  local filter = { traverse = "topdown" }
  for _, kind in ipairs(WITH_IDENTIFIER) do filter[kind] = action end
  return filter
end

-- Links inside the document: those whose target exists keep it, whichever cell it is in; all others
-- become their text. Identifiers are made unique, and removed where nothing refers to them
-- (`keep_headers`: but not from headings).
function markup.resolve_links(blocks, keep_headers)
  local final, taken, used = {}, {}, {}
  local function enter(identifier, name)
    for _, key in ipairs({ identifier, loose(identifier) }) do
      if key ~= "" then final[key] = final[key] or name end
    end
  end
  local function rename(element)
    local identifier = element.identifier
    if identifier == "" and element.t ~= "Header" then return nil end
    local stem = identifier:gsub("[^%w%-_]+", "-"):gsub("^%-+", ""):gsub("%-+$", "")
    if stem == "" then stem = "section" end
    local name, count = stem, 1
    while taken[name] do
      count = count + 1
      name = stem .. "-" .. count
    end
    taken[name] = true
    enter(identifier, name)
    element.identifier = name
    if element.t == "Header" then  -- anchors in a heading are names of the heading
      element.content = element.content:walk({ Span = function(span)
        if span.identifier ~= "" then enter(span.identifier, name) end
        return span.content
      end })
    end
    return element
  end
  local function resolve(link)
    local target = link.target:match("^#(.*)$")
    if not target then return nil end
    local name = final[target] or final[loose(target)]
    if not name then return link.content end
    used[name] = true
    link.target = "#" .. name
    return link
  end
  local function forget(element)
    if element.identifier == "" or used[element.identifier] then return nil end
    if keep_headers and element.t == "Header" then return nil end
    element.identifier = ""
    return element
  end
  return blocks:walk(for_each_identifier(rename)):walk({ Link = resolve }):walk(for_each_identifier(forget))
end

return markup
